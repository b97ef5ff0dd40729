"""Train, score and write the demo model with registers."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.registers import DELTA
from vtr_vllm.demo.registers.packing import pack
from vtr_vllm.demo.splits import sample
from vtr_vllm.errors import VTRError
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.search.session import lock
from vtr_vllm.training.demo.evaluate import Scores, prepare, score
from vtr_vllm.training.demo.export import build_processor
from vtr_vllm.training.demo.shards import Crew
from vtr_vllm.training.registers.checkpoint import halvings, schedules, write
from vtr_vllm.training.registers.demo.evaluate import (
    CONTROLS,
    control,
    with_registers,
    without_drop,
)
from vtr_vllm.training.registers.demo.losses import job_loss
from vtr_vllm.training.registers.demo.model import RegisterModel
from vtr_vllm.training.registers.demo.train import Recipe, Trainer


def report(
    model: RegisterModel, start: Path, recipe: Recipe, samples: int
) -> dict[str, dict[str, Scores]]:
    """Scores on each test split: with registers alone, without a drop, and the controls; with what stays,
    and the layer before which all else goes."""
    untouched = LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    found: dict[str, dict[str, Scores]] = {}
    for split in ("test", "test-hard"):
        groups = prepare(untouched, [sample(split, i) for i in range(samples)])
        own = found[split] = {"untouched": score(untouched, groups)}
        own["registers, nothing dropped"] = without_drop(model, groups)
        for layer, kept in product(recipe.layers, recipe.counts):
            own[f"registers {kept}, {layer}"] = with_registers(model, groups, kept, layer)
            for name in CONTROLS:
                own[f"{name} {kept}, {layer}"] = control(untouched, groups, name, kept, layer)
    return found


def main() -> int:
    """Train, score on 1,000 questions of each test split, and write a checkpoint; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vtr_vllm.training.registers.demo",
        description="Train the demo model's registers.",
    )
    recipe = Recipe()
    add = parser.add_argument
    add("--start", type=Path, default=CHECKPOINT, help="folder of the weights to begin with")
    add("--out", type=Path, default=Path("build/demo-registers/checkpoint"))
    add("--work", type=Path, default=Path("build/demo-registers/work"))
    add("--registers", type=int, default=recipe.registers)
    add(
        "--counts",
        type=int,
        nargs="+",
        help="how many of them may stay, drawn anew at each step (default: all, half, a quarter)",
    )
    add(
        "--layers",
        type=int,
        nargs="+",
        default=recipe.layers,
        help="before which all else of an image goes, drawn anew at each step (default: %(default)s)",
    )
    add("--steps", type=int, default=recipe.steps)
    add("--samples", type=int, default=1000, help="questions of each test split")
    asked = parser.parse_args()
    recipe = replace(
        recipe,
        registers=asked.registers,
        counts=tuple(asked.counts or halvings(asked.registers)[:3]),
        layers=tuple(asked.layers),
        steps=asked.steps,
    )
    try:
        with lock(asked.work):
            _train(recipe, asked)
    except (VTRError, OSError) as err:
        print(f"registers: {err}", file=sys.stderr)
        return 1
    return 0


def _train(recipe: Recipe, asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(recipe, asked.start, asked.work)
    model = trainer.model
    with Crew(model, recipe.shards, job_loss) as crew:
        trainer.run(crew)
    torch.set_num_threads(recipe.shards)
    print(json.dumps(report(model, asked.start, recipe, asked.samples)), flush=True)
    config = model.llava.config
    geometry = ModelGeometry.from_config(config.text_config.to_dict())
    sizes = config.image_seq_length, recipe.registers
    found = [
        one if len(recipe.layers) == 1 else replace(one, name=f"{one.name}-before-{layer}")
        for layer in recipe.layers
        for one in schedules(geometry, *sizes, layer, recipe.counts)
    ]
    write(model.llava.bfloat16(), build_processor(), model.registers.detach(), asked.out, found)
    pack(asked.out, asked.out.with_name(DELTA.name))


if __name__ == "__main__":
    sys.exit(main())
