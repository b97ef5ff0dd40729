"""Modules as a training leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vtr_vllm.atp.artefact import Artefact, describe
from vtr_vllm.atp.facts import Facts
from vtr_vllm.atp.module import AtpModules, Shape
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.training.llava import Llava

GEOMETRY = ModelGeometry(12, 128, 320, 2, 2, 64)


def undecided(llava: Llava, layers: Sequence[int]) -> AtpModules:
    """Modules for a model, whose thresholds lie in the midst of the scores: instances differ."""
    torch.manual_seed(3)
    modules = AtpModules(layers, Shape(state=llava.state_width))
    for index in range(len(layers)):
        torch.nn.init.normal_(modules.cut(index).heads.weight, std=0.4)
        modules.cut(index).heads.bias.data = torch.tensor([-0.5 + 0.2 * index, 1.0])
    return modules


def made_for(llava: Llava, folder: Path, layers: Sequence[int]) -> Artefact:
    """Undecided ones, written to ``folder``."""
    modules = undecided(llava, layers)
    return made(folder, modules, llava.geometry, llava.grid, llava.checkpoint, n_min=1)


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
    artefact.save()
    return artefact
