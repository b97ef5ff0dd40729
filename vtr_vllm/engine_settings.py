"""What vLLM is started with for us: names, and ``--additional-config '{"vtr": {...}}'``.

Loads neither torch nor vllm: the command line reads it before a start, the engine's processes in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vtr_vllm.errors import ConfigurationError

__all__ = ["PLUGIN", "SCHEDULER_CLS", "WORKER_CLS", "EngineSettings"]

PLUGIN = "vtr"
"""Our name in each of vLLM's groups of plugins, and in its additional configuration."""
WORKER_CLS = "vtr_vllm.engine.worker.Worker"
SCHEDULER_CLS = "vtr_vllm.engine.scheduler.Scheduler"


@dataclass(frozen=True)
class EngineSettings:
    """The object ``vtr`` of vLLM's additional configuration."""

    bands: int | None = None
    """Number of KV-cache groups that the decoder layers are split into; None picks four to nine, by
    the number of layers. More bands free memory closer to the schedule; each costs its own metadata
    at every step."""
    schedules: Path | None = None
    """Folder of schedule files that the server offers."""
    atp: Path | None = None
    """Folder of trained modules, by which rule ``atp`` decides what stays."""
    settings: Path | None = None
    """The server's settings file. The engine does not read it; it runs only behind a front end that
    does: see ``engine.common.front_end``."""

    @classmethod
    def of(cls, additional_config: object) -> EngineSettings:
        """Read vLLM's additional configuration; without an object ``vtr`` in it all is as by default.

        Raises ConfigurationError for unknown keys and for values of another type.
        """
        config = additional_config if isinstance(additional_config, Mapping) else {}
        given = config.get(PLUGIN, {})
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"additional-config vtr is {given!r}; it must be an object")
        unknown = set(given) - set(cls.__dataclass_fields__)
        if unknown:
            raise ConfigurationError(
                f"additional-config vtr has the unknown keys {sorted(unknown)}; allowed are"
                f" {sorted(cls.__dataclass_fields__)}"
            )
        bands = given.get("bands")
        if bands is not None and (
            not isinstance(bands, int) or isinstance(bands, bool) or bands < 1
        ):
            raise ConfigurationError(
                f"additional-config vtr bands is {bands!r}; it must be a whole number from 1 to the"
                " number of layers"
            )
        folders = (_path(given, name) for name in ("schedules", "atp", "settings"))
        return cls(bands, *folders)


def _path(given: Mapping[str, object], name: str) -> Path | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"additional-config vtr {name} is {value!r}; it must be a path")
    return Path(value) if value else None
