"""A checkpoint with registers, as the engine loads it, and the schedules that drop to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vtr_vllm.engine.common.registers import REGISTERS_KEY
from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule
from vtr_vllm.schedules.keep_rates import mean
from vtr_vllm.tensor_file import save_tensors
from vtr_vllm.training.demo.export import use_classic_names

__all__ = ["SCHEDULES", "halvings", "schedules", "write"]

SCHEDULES = "schedules"
"""Folder of the schedules in the checkpoint's."""
_NAME, _WEIGHT, _CONFIG = "model.safetensors", "registers", "config.json"
_UNFINISHED = ".unfinished-"  # what the name of a folder begins with from which files are moved


def write(
    model: Any,
    processor: Any,
    registers: Tensor,
    folder: Path,
    found: Sequence[Schedule] = (),
) -> None:
    """Weights, configuration and processor in the hub's layout, and schedules; OSError passes through.

    While ``config.json`` is not there the folder is no checkpoint: it goes first and comes last. Nobody
    else may be writing there; what a process left that was killed while it wrote is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left)
    made = Path(mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        _write(model, processor, registers, made)
        (folder / _CONFIG).unlink(missing_ok=True)
        if found:
            _write_schedules(found, folder / SCHEDULES)
        for file in sorted(made.iterdir(), key=lambda file: file.name == _CONFIG):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write(model: Any, processor: Any, registers: Tensor, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="1TB")
    processor.save_pretrained(folder)
    use_classic_names(folder / _NAME)
    weights = load_file(folder / _NAME)
    weights[_WEIGHT] = registers.to(model.dtype)
    save_tensors(folder / _NAME, weights)
    path = folder / _CONFIG
    config = {**json.loads(path.read_text()), REGISTERS_KEY: len(registers)}
    path.write_text(json.dumps(config, indent=2) + "\n")


def halvings(registers: int) -> list[int]:
    """Return the numbers of registers that elastic ones serve: all, half of them, and so on to one."""
    counts = [registers]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def schedules(
    geometry: ModelGeometry, n_vision: int, registers: int, layer: int, counts: Sequence[int]
) -> list[Schedule]:
    """All tokens before ``layer``, then the first of the registers: for each of ``counts`` so many."""
    found = []
    for count in counts:
        rate = count / (n_vision + registers)
        keep = (1.0,) * layer + (rate,) * (geometry.layers - layer)
        schedule = Schedule(
            f"registers-{count}",
            geometry,
            keep,
            (RankRule.parse("registers"),),
            method="registers",
            parameters={"registers": count, "layer": layer},
            budget=mean(keep),
        )
        found.append(schedule)
    return found


def _write_schedules(found: Sequence[Schedule], folder: Path) -> None:
    """In the place of an earlier training's; whatever else lies there stays."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("registers-*.json"):
        old.unlink()
    for schedule in found:
        schedule.save(folder / f"{schedule.name}.json")
