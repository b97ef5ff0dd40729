"""What is known of trained ATP modules without their weights: for which model, before which layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vtr_vllm.errors import ConfigurationError, GeometryMismatch, ScheduleError, show
from vtr_vllm.schedules import FIRST_ATTENTION_CUT, ModelGeometry
from vtr_vllm.schedules.strict_json import check_keys, check_version, read_object

__all__ = ["FACTS", "SCHEMA_VERSION", "WEIGHTS", "Facts", "check"]

SCHEMA_VERSION = 1
FACTS, WEIGHTS = "atp.json", "atp.safetensors"

_KEYS = (
    *("schema_version", "checkpoint", "fingerprint", "geometry", "grid", "layers", "shape"),
    *("n_min", "target", "lora", "data", "options", "losses", "scores"),
)


@dataclass(frozen=True)
class Facts:
    """``atp.json`` of a folder; ``values`` is all of it."""

    values: dict[str, Any]
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read them; raises ConfigurationError with the file and the reason."""
        path = folder / FACTS
        try:
            values = read_object(path.read_text(encoding="utf-8"))
            check(values)
        except (OSError, UnicodeDecodeError, ScheduleError) as err:
            raise ConfigurationError(
                f"{path} cannot be read ({err}); name a folder that `vtr train atp` has finished"
            ) from err
        return cls(values, folder)

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers before which the modules lie, ascending."""
        return tuple(self.values["layers"])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's vision tokens."""
        rows, columns = self.values["grid"]
        return rows, columns

    @property
    def n_min(self) -> int:
        """The fewest tokens that a cut leaves."""
        return int(self.values["n_min"])

    @property
    def lora(self) -> int | None:
        """Rank of the LoRA that was trained beside them; None: the model is as it was."""
        rank: int | None = self.values["lora"]
        return rank

    def check_geometry(self, geometry: ModelGeometry) -> None:
        """Raise GeometryMismatch unless the modules were trained for a model of this form."""
        ours, theirs = self.values["fingerprint"], geometry.fingerprint
        if ours != theirs:
            raise GeometryMismatch(
                f"{self.folder / FACTS} was trained for {ours}, the model is {theirs}; train for this model"
            )

    def check_checkpoint(self, checkpoint: str | None) -> None:
        """Raise ConfigurationError unless they were trained for this model: they read its hidden states,
        which other weights of its form do not have."""
        if checkpoint is None:
            raise ConfigurationError(
                f"{self.folder / FACTS} was trained on checkpoint {self.values['checkpoint']}, and that of the"
                " model cannot be told: its files are in no folder and no cache; name its folder"
            )
        if self.values["checkpoint"] != checkpoint:
            raise ConfigurationError(
                f"{self.folder / FACTS} was trained on checkpoint {self.values['checkpoint']}, and the model"
                f" is {checkpoint}; name the model of the training, or train for this one"
            )

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raise GeometryMismatch unless they were trained for images of so many rows and columns."""
        if self.grid != grid:
            raise GeometryMismatch(
                f"{self.folder / FACTS} was trained for {self.grid[0]} x {self.grid[1]} vision tokens an"
                f" image, the model has {grid[0]} x {grid[1]}; train for this model"
            )

    def check_served(self) -> None:
        """Raise ConfigurationError for modules that no engine can run, and whose counts no schedule can have."""
        if self.layers[0] < FIRST_ATTENTION_CUT:
            raise ConfigurationError(
                f"{self.folder} has a module before layer {self.layers[0]}, and no rule ranks by attention"
                f" before layer {FIRST_ATTENTION_CUT}: train with --layers from there on"
            )
        if self.lora is not None:
            raise ConfigurationError(
                f"{self.folder} was trained with --lora, and an engine has the model as it was: train"
                " without"
            )


def check(values: Any) -> None:
    """Raise ScheduleError unless they have what ``atp.json`` holds, and no more."""
    check_version(values, SCHEMA_VERSION, "train again")
    check_keys(values, _KEYS, FACTS)
    for name in ("layers", "grid"):
        found = values[name]
        if not isinstance(found, list) or not found or not all(map(_is_count, found)):
            raise ScheduleError(f"{name} is {show(found)}; it must be whole numbers above 0")
    if values["layers"] != sorted(set(values["layers"])) or len(values["grid"]) != 2:
        raise ScheduleError(
            f"layers are {show(values['layers'])} and the grid is {show(values['grid'])}; layers rise, and a"
            " grid has rows and columns"
        )
    if not _is_count(values["n_min"]) or not (values["lora"] is None or _is_count(values["lora"])):
        raise ScheduleError(
            f"n_min is {show(values['n_min'])} and lora {show(values['lora'])}; they must be whole numbers"
            " above 0, the second may be null"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
