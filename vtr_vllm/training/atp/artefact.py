"""What a training leaves, and goes on from: weights, what they are, and the state of a training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file

from vtr_vllm.errors import ConfigurationError, GeometryMismatch, ScheduleError
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.schedules.strict_json import check_keys, check_version, read_object
from vtr_vllm.training.atp.module import AtpModules, Shape
from vtr_vllm.training.state import save_tensors
from vtr_vllm.whole_file import whole_file

__all__ = [
    "FACTS",
    "LORA",
    "WEIGHTS",
    "Artefact",
    "describe",
]

SCHEMA_VERSION = 1
WEIGHTS, FACTS, LORA = "atp.safetensors", "atp.json", "lora.safetensors"

_KEYS = (
    *("schema_version", "checkpoint", "fingerprint", "geometry", "grid", "layers", "shape"),
    *("n_min", "target", "lora", "data", "options", "losses", "scores"),
)


@dataclass(frozen=True)
class Artefact:
    """The trained modules of one model; ``facts`` is atp.json in full."""

    modules: AtpModules
    facts: dict[str, Any]
    folder: Path

    @property
    def scores(self) -> dict[str, Any] | None:
        """Of the held-out items."""
        found: dict[str, Any] | None = self.facts["scores"]
        return found

    @property
    def n_min(self) -> int:
        """The fewest tokens that a cut leaves."""
        return int(self.facts["n_min"])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's vision tokens."""
        rows, columns = self.facts["grid"]
        return rows, columns

    def check_fits(
        self, geometry: ModelGeometry, grid: tuple[int, int], checkpoint: str | None
    ) -> None:
        """Raise GeometryMismatch unless the modules were trained for such a model, ConfigurationError
        unless for this one: they read its hidden states, which other weights of its form do not have."""
        theirs = f"{geometry.fingerprint} and {grid[0]} x {grid[1]} vision tokens"
        ours = f"{self.facts['fingerprint']} and {self.grid[0]} x {self.grid[1]} vision tokens"
        if ours != theirs:
            raise GeometryMismatch(
                f"{self.folder / FACTS} was trained for {ours}, the model has {theirs}; train for this"
                " model"
            )
        if self.facts["checkpoint"] != checkpoint:
            raise ConfigurationError(
                f"{self.folder / FACTS} was trained on checkpoint {self.facts['checkpoint']}, and the model"
                f" is {checkpoint}; name the model of the training, or train for this one"
            )

    def save(self) -> None:
        """Write both files, each at once; what they are last. OSError passes through."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self.folder / WEIGHTS, dict(self.modules.state_dict()))
        with whole_file(self.folder / FACTS) as file:
            file.write(json.dumps(self.facts, indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read both; raises ConfigurationError with the file and the reason."""
        path = folder / FACTS
        try:
            facts: dict[str, Any] = read_object(path.read_text(encoding="utf-8"))
            _check(facts)
            modules = AtpModules(facts["layers"], Shape(**facts["shape"]))
            modules.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, UnicodeDecodeError, SafetensorError, ScheduleError) as err:
            raise ConfigurationError(
                f"{path} cannot be read ({err}); name a folder that `vtr train atp` has finished"
            ) from err
        except (RuntimeError, TypeError, ValueError) as err:
            raise ConfigurationError(
                f"{folder / WEIGHTS} and {FACTS} do not belong together ({err}); train again"
            ) from err
        return cls(modules.eval().requires_grad_(False), facts, folder)


def describe(
    checkpoint: str | None,
    geometry: ModelGeometry,
    grid: tuple[int, int],
    modules: AtpModules,
    **more: Any,
) -> dict[str, Any]:
    """What atp.json holds."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": checkpoint,
        "fingerprint": geometry.fingerprint,
        "geometry": geometry.to_dict(),
        "grid": list(grid),
        "layers": list(modules.layers),
        "shape": asdict(modules.shape),
        **more,
    }
    _check(facts)
    return facts


def _check(facts: Any) -> None:
    check_version(facts, SCHEMA_VERSION, "train again")
    check_keys(facts, _KEYS, FACTS)
