"""A checkpoint with registers, as the engine loads it, and the schedules that drop to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vtr_vllm.demo.export import use_classic_names
from vtr_vllm.engine.common.registers import REGISTERS_KEY
from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule
from vtr_vllm.schedules.keep_rates import mean
from vtr_vllm.training.state import save_tensors

__all__ = ["SCHEDULES", "schedules", "write"]

SCHEDULES = "schedules"
"""Folder of the schedules in the checkpoint's."""
_NAME, _WEIGHT = "model.safetensors", "registers"


def write(model: Any, processor: Any, registers: Tensor, folder: Path) -> None:
    """Weights, configuration and processor in the hub's layout; OSError passes through."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size="1TB")
    processor.save_pretrained(folder)
    use_classic_names(folder / _NAME)
    weights = load_file(folder / _NAME)
    weights[_WEIGHT] = registers.to(model.dtype)
    save_tensors(folder / _NAME, weights)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), REGISTERS_KEY: len(registers)}
    path.write_text(json.dumps(config, indent=2) + "\n")


def schedules(
    geometry: ModelGeometry, n_vision: int, registers: int, layer: int, elastic: bool
) -> list[Schedule]:
    """All tokens before ``layer``, then the registers: all of them, and where they are elastic each
    halving of their number."""
    counts = [registers]
    while elastic and counts[-1] > 1:
        counts.append(counts[-1] // 2)
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


def write_schedules(found: list[Schedule], folder: Path) -> None:
    """Into the checkpoint's folder, which holds no others; OSError passes through."""
    target = folder / SCHEDULES
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for schedule in found:
        schedule.save(target / f"{schedule.name}.json")
