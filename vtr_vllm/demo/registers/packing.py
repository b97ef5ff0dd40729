"""A checkpoint with registers as what differs from the demo model's, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.registers import DELTA, SCHEDULES

_WEIGHTS, _CONFIG, _FORMAT = "model.safetensors", "config.json", {"format": "pt"}


def pack(checkpoint: Path, file: Path) -> None:
    """Write what a folder's weights have that the demo model's have not; OSError passes through."""
    known = load_file(CHECKPOINT / _WEIGHTS)
    own = {
        name: weight
        for name, weight in load_file(checkpoint / _WEIGHTS).items()
        if name not in known or not torch.equal(weight, known[name])
    }
    save_file(own, file, _FORMAT)


def write(folder: Path) -> None:
    """Write weights, configuration, processor and ``schedules/`` into ``folder``; OSError passes through."""
    shutil.copytree(
        CHECKPOINT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md")
    )
    shutil.copytree(SCHEDULES, folder / "schedules", dirs_exist_ok=True)
    delta = load_file(DELTA)
    save_file({**load_file(CHECKPOINT / _WEIGHTS), **delta}, folder / _WEIGHTS, _FORMAT)
    path = folder / _CONFIG
    config = json.loads(path.read_text()) | {"vtr_registers": len(delta["registers"])}
    path.write_text(json.dumps(config, indent=2) + "\n")
