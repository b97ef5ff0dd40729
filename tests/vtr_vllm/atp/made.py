"""Modules as a training leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtr_vllm.atp.artefact import Artefact, describe
from vtr_vllm.atp.facts import Facts
from vtr_vllm.atp.module import AtpModules, Shape
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.training.atp.writing import write

GEOMETRY = ModelGeometry(12, 128, 320, 2, 2, 64)


def made(
    folder: Path,
    modules: AtpModules | None = None,
    geometry: ModelGeometry = GEOMETRY,
    grid: tuple[int, int] = (12, 12),
    checkpoint: str | None = "c0ffee",
    **more: Any,
) -> Artefact:
    """Written to ``folder``; ``more``: other facts than these."""
    modules = modules or AtpModules((2, 5), Shape(state=8))
    none = dict.fromkeys(("lora", "data", "options", "losses", "scores"))
    given = {**none, "n_min": 2, "target": 0.25, **more}
    values = describe(checkpoint, geometry, grid, modules, **given)
    artefact = Artefact(modules, Facts(values, folder))
    write(artefact)
    return artefact
