"""The settings in use, read again when their file changes.

What can change while the server runs takes effect for the next request; a request inside keeps what
it began with. A file that is broken, or that would open a server that has keys, replaces nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vtr_server.operations.metrics import observe_settings_reload
from vtr_server.policy.file_signature import SECONDS, signature_of
from vtr_server.policy.settings import ServerSettings
from vtr_vllm.errors import ConfigurationError, VTRError
from vtr_vllm.faults import first_fault

__all__ = ["FIXED", "SettingsFile"]

logger = logging.getLogger("vllm.vtr")

FIXED = (
    *("elastic", "media", "admin", "page", "jobs"),
    *("limits.image_pixels", "limits.video_frames", "limits.decoded_pixels"),
)
"""What is built into the server when it starts: a change of it waits for the next start."""


class SettingsFile:
    """The file of ``--settings``, or none; ``settings`` is what holds now.

    ``adopt`` is awaited with each new settings, one after the other. Those of which ``check`` or
    ``adopt`` raises a VTRError are not taken.
    """

    def __init__(
        self,
        path: Path | None,
        settings: ServerSettings,
        adopt: Callable[[ServerSettings], Awaitable[None]],
        check: Callable[[ServerSettings], None] = lambda _: None,
    ) -> None:
        self.settings = settings
        self._path = path
        self._adopt = adopt
        self._check = check
        self._seen = self._read = signature_of(path) if path else None
        self._one_at_a_time = asyncio.Lock()

    async def watch(self) -> None:
        """Reload for as long as the server runs."""
        while self._path is not None:
            await asyncio.sleep(SECONDS)
            await self.reload_if_changed()

    async def reload_if_changed(self) -> list[str]:
        """Look at the file; returns what was rejected.

        A file is read once it has been the same twice, so that half of one that is being written is
        not taken for the whole.
        """
        if self._path is None:
            return []
        found = await asyncio.to_thread(signature_of, self._path)
        settled, self._seen = found == self._seen, found
        return await self.reload() if settled and found != self._read else []

    async def reload(self) -> list[str]:
        """Read the file whether or not it changed; returns what was rejected or must wait."""
        if self._path is None:
            return []
        async with self._one_at_a_time:
            signature = self._seen = await asyncio.to_thread(signature_of, self._path)
            try:
                wanted = await asyncio.to_thread(ServerSettings.load, self._path)
                possible = self._possible(wanted)
                self._check(possible)
                await self._adopt(possible)
            except VTRError as err:
                self._read = signature
                logger.error("VTR keeps the settings that it had: %s", err)
                observe_settings_reload("rejected")
                return [str(err)]
            self._read = signature  # not before: what fails unforeseen is read once more
            waits = self._waits(wanted)
            self.settings = possible
            for reason in waits:
                logger.warning("VTR: settings file %s: %s", self._path, reason)
            observe_settings_reload("partial" if waits else "ok")
            names = ", ".join(key.name for key in possible.keys) or "none"
            logger.info("VTR has read %s again; keys: %s", self._path, names)
            return waits

    def _possible(self, wanted: ServerSettings) -> ServerSettings:
        """``wanted``, but for what stays as it is running; raises ConfigurationError."""
        if self.settings.keys and not wanted.keys:
            raise ConfigurationError(
                f"settings file {self._path} has no [[keys]] any more, which would open a server that"
                " had some; restart it if that is meant"
            )
        mixed = wanted.model_dump()
        for table, _, field in (name.partition(".") for name in FIXED):
            if field:
                mixed[table][field] = _value(self.settings, table, field)
            else:
                mixed[table] = getattr(self.settings, table)
        try:
            return ServerSettings.model_validate(mixed)
        except ValidationError as err:
            raise ConfigurationError(
                f"settings file {self._path} goes together with changes that only a restart brings:"
                f" {first_fault(err)}; restart the server"
            ) from err

    def _waits(self, wanted: ServerSettings) -> list[str]:
        """What the file changes and only a restart brings."""
        return [
            f"[{table}]{f' {field}' if field else ''} changed, which a running server cannot follow:"
            " restart it"
            for table, _, field in (name.partition(".") for name in FIXED)
            if _value(wanted, table, field) != _value(self.settings, table, field)
        ]


def _value(settings: ServerSettings, table: str, field: str) -> Any:
    found = getattr(settings, table)
    return getattr(found, field) if field else found
