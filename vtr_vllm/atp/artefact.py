"""What a training of ATP modules leaves: weights, and the facts that they are bound to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file

from vtr_vllm.atp.facts import FACTS, SCHEMA_VERSION, WEIGHTS, Facts, check
from vtr_vllm.atp.module import AtpModules, Shape
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.tensor_file import save_tensors
from vtr_vllm.whole_file import whole_file

__all__ = ["LORA", "Artefact", "describe"]

LORA = "lora.safetensors"


@dataclass(frozen=True)
class Artefact:
    """The trained modules of one model."""

    modules: AtpModules
    facts: Facts

    @property
    def scores(self) -> dict[str, Any] | None:
        """Of the held-out items."""
        found: dict[str, Any] | None = self.facts.values["scores"]
        return found

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read both; raises ConfigurationError with the file and the reason."""
        facts = Facts.load(folder)
        try:
            # Where an engine loads its own weights, another type is torch's default.
            modules = AtpModules(facts.layers, Shape(**facts.values["shape"])).float()
            modules.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, SafetensorError) as err:
            raise ConfigurationError(
                f"{folder / WEIGHTS} cannot be read ({err}); name a folder that `vtr train atp` has finished"
            ) from err
        except (RuntimeError, TypeError, ValueError) as err:
            raise ConfigurationError(
                f"{folder / WEIGHTS} and {FACTS} do not belong together ({err}); train again"
            ) from err
        return cls(modules.eval().requires_grad_(False), facts)

    def save(self) -> None:
        """Write both files, each at once; what the modules are last. OSError passes through."""
        folder = self.facts.folder
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, self.modules.state_dict())
        with whole_file(folder / FACTS) as file:
            file.write(json.dumps(self.facts.values, indent=2, allow_nan=False) + "\n")


def describe(
    checkpoint: str | None,
    geometry: ModelGeometry,
    grid: tuple[int, int],
    modules: AtpModules,
    **more: Any,
) -> dict[str, Any]:
    """What atp.json holds."""
    values = {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": checkpoint,
        "fingerprint": geometry.fingerprint,
        "geometry": geometry.to_dict(),
        "grid": list(grid),
        "layers": list(modules.layers),
        "shape": asdict(modules.shape),
        **more,
    }
    check(values)
    return values
