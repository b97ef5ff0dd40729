"""The schedules in use, read again when their folder changes.

Requests hold the chooser that they began with, so a change never touches them.
"""

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vtr_server.operations.metrics import observe_reload, observe_schedules
from vtr_server.policy.adaptive_choice import adapts
from vtr_server.policy.file_signature import SECONDS, Signature, signature_of
from vtr_server.policy.requested_budget import (
    ADAPT_SUFFIX,
    ALIAS,
    REUSE_SUFFIX,
    Bounds,
    Switch,
    short_form,
)
from vtr_server.policy.schedule_choice import ScheduleChooser, describe
from vtr_server.policy.settings import AUTO
from vtr_vllm.adaptive import ScheduleFamily
from vtr_vllm.adaptive.family import FILE
from vtr_vllm.errors import RequestError, ScheduleError, VTRError
from vtr_vllm.schedules import ModelGeometry, Schedule, ScheduleBook

__all__ = ["Offer", "ScheduleFolder"]

logger = logging.getLogger("vllm.vtr")

State = dict[Path, Signature]
"""Of the files of a folder."""


@dataclass(frozen=True)
class Offer:
    """What can be asked for now, and how GET /v1/schedules describes it."""

    chooser: ScheduleChooser
    description: dict[str, Any]
    aliases: list[str]
    """What may stand behind ``MODEL@``."""

    @classmethod
    def of(cls, chooser: ScheduleChooser) -> "Offer":
        _ = chooser.grids  # made here, beside the requests, not by the first one that needs it
        return cls(chooser, describe(chooser), chooser.aliases())

    def described(self, policy: Bounds, default: float | str) -> dict[str, Any]:
        """The description for a caller, with the tiers that it may ask for."""
        budget = {"minimum": policy.minimum, "maximum": policy.maximum, "default": default}
        tiers = self.description["tiers"].items()
        return self.description | {
            "budget": self.description["budget"] | budget,
            "tiers": {name: share for name, share in tiers if policy.holds(share)},
        }

    def aliases_within(self, policy: Bounds) -> list[str]:
        """The aliases that a caller may ask for; ``auto`` keeps within any bounds."""
        shares = self.description["tiers"] | {AUTO: policy.maximum}

        def share(alias: str) -> float:
            name = alias.removesuffix(REUSE_SUFFIX).removesuffix(ADAPT_SUFFIX)
            return float(shares.get(name, name))

        return [alias for alias in self.aliases if policy.holds(share(alias))]

    def has_alias(self, wish: str, policy: Bounds) -> bool:
        """Whether ``MODEL@wish`` asks for what there is and a caller may have, listed or not."""
        try:
            read = short_form([wish], f"model alias {ALIAS}")
            assert read.ask is not None
            reuse = Switch(bool(read.reuse), explicit=read.reuse is not None)
            choice = self.chooser.choose(read.ask, policy, reuse=reuse)
            adapt = Switch(bool(read.adapt), explicit=read.adapt is not None)
            adapts(self.chooser, read.ask, choice, adapt)
        except RequestError:
            return False
        return True


class ScheduleFolder:
    """The schedules of one folder, or of none, as ``offer``.

    Raises ScheduleError for a folder that is faulty at the start: a server that begins with half
    of its schedules would answer otherwise than its operator expects.
    """

    def __init__(
        self, geometry: ModelGeometry, folder: Path | None, template: ScheduleChooser
    ) -> None:
        """``template`` has everything but the schedules in the book."""
        self._geometry = geometry
        self._folder = folder
        self._template = template
        self._good: dict[Path, Schedule] = {}
        self._family: ScheduleFamily | None = None
        self._state: State = {}
        self._reading = threading.Lock()
        self.offer: Offer
        self._band_starts, self._modules = template.book.band_starts, template.book.modules
        book = template.book
        if folder is not None:
            self._state = _state(folder)
            book = ScheduleBook.from_folder(geometry, folder, self._band_starts, self._modules)
            files = [file for file in self._state if file != folder / FILE]
            self._good = {file: Schedule.load(file) for file in files}
            if len(files) < len(self._state):
                self._family = self._load_family(folder)
        self._take(book)

    def adopt(self, tiers: Mapping[str, float | str], confidence: float = 0.0) -> None:
        """Offer the same schedules under other tiers, and with another floor of confidence."""
        with self._reading:
            chooser = replace(self.offer.chooser, tiers=tiers, confidence=confidence)
            self.offer = Offer.of(chooser)
            self._template = replace(self._template, tiers=tiers, confidence=confidence)

    async def watch(self) -> None:
        """Reload for as long as the server runs."""
        while self._folder is not None:
            await asyncio.sleep(SECONDS)
            await asyncio.to_thread(self.reload_if_changed)

    def reload_if_changed(self) -> list[str]:
        """Look at the folder; returns what was rejected. A good schedule stays until it is
        replaced by a good one, or deleted."""
        assert self._folder is not None
        with self._reading:
            state = _state(self._folder)
            return [] if state == self._state else self._reload(self._folder, state)

    def reload(self) -> list[str]:
        """Read the folder whether or not it changed; returns what was rejected."""
        if self._folder is None:
            return []
        with self._reading:
            return self._reload(self._folder, _state(self._folder))

    def _reload(self, folder: Path, state: State) -> list[str]:
        """One at a time: of two readers the one that began earlier must not end later, or the
        older state of the folder would stay."""
        rejected = self._read_and_take(folder, state)
        self._state = state  # not before: what fails unforeseen is read once more
        for reason in rejected:
            logger.error("VTR keeps what it had: %s", reason)
        observe_reload("rejected" if rejected else "ok")
        return rejected

    def _read_and_take(self, folder: Path, state: State) -> list[str]:
        if not folder.is_dir():
            return [f"schedule folder {folder} is gone; bring it back"]
        good, rejected = self._read([file for file in state if file != folder / FILE])
        try:
            self._family = self._load_family(folder) if folder / FILE in state else None
        except ScheduleError as err:
            rejected.append(str(err))
        try:
            book = ScheduleBook(self._geometry, good.values(), self._band_starts, self._modules)
            self._take(book)
        except VTRError as err:
            # Each file is fine by itself: two share a name or a budget. Neither wins by chance.
            rejected.append(str(err))
        else:
            self._good = good
        return rejected

    def _load_family(self, folder: Path) -> ScheduleFamily:
        family = ScheduleFamily.load(folder / FILE)
        family.check_fits(self._geometry)
        return family

    def _read(self, files: Iterable[Path]) -> tuple[dict[Path, Schedule], list[str]]:
        good: dict[Path, Schedule] = {}
        rejected = []
        for file in files:
            try:
                schedule = Schedule.load(file)
                schedule.check_fits(self._geometry)
                schedule.check_bands(self._band_starts)
                schedule.check_modules(self._modules)
            except ScheduleError as err:
                if file in self._good:
                    good[file] = self._good[file]
                rejected.append(f"{file}: {err}")
            else:
                good[file] = schedule
        return good, rejected

    def _take(self, book: ScheduleBook) -> None:
        self.offer = Offer.of(replace(self._template, book=book, family=self._family))
        observe_schedules(len(book.names()))
        logger.info("VTR offers the schedules %s", ", ".join(book.names()))
        if self._family is not None:
            logger.info("VTR offers the family %s", self._family.name)


def _state(folder: Path) -> State:
    """What tells one state of a folder from the next; a file that vanishes meanwhile is left out."""
    files = [*sorted(folder.glob("*.json")), folder / FILE]
    return {file: found for file in files if (found := signature_of(file)) is not None}
