"""Train the photo model, or go on; score it, and write what was learned."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vtr_vllm.command_line import Parser, count
from vtr_vllm.errors import VTRError
from vtr_vllm.photo.delta import DELTA, PARTS
from vtr_vllm.photo.model import TOKENS, assemble
from vtr_vllm.photo.parts import FOLDER, fetch_art
from vtr_vllm.search.session import lock
from vtr_vllm.tensor_file import save_tensors
from vtr_vllm.training.photo.pictures import Features, Picture, digest, photographs, scenes
from vtr_vllm.training.photo.score import score
from vtr_vllm.training.photo.train import Recipe, Trainer
from vtr_vllm.training.stop import STOPPED, Stop


def main() -> int:
    """Read the command line and train; returns the exit code, 0 at the training's end."""
    options = _options()
    torch.set_num_threads(options.threads)
    try:
        with lock(options.work):
            return _train(options)
    except (VTRError, OSError) as err:
        print(f"photo training: {err}", file=sys.stderr)
        return 1


def _train(options: argparse.Namespace) -> int:
    tests = photographs(options.tests, "photograph") if options.tests else []
    model, processor = assemble(options.parts)
    art = fetch_art(options.parts)
    pictures = scenes(art, "train", options.scenes)
    if options.photographs:
        pictures += photographs(options.photographs, "photograph")
    features = _features(options.work, model, pictures)
    with Stop() as stop:
        for done in features.fill(model, processor, pictures):
            if done % 200 == 0:
                print(f"tower: {done} of {len(pictures)} pictures", flush=True)
            if stop():
                return STOPPED + int(stop.signal or 0)
        recipe = Recipe(steps=options.steps)
        trainer = Trainer(model, processor, pictures, features, recipe, options.work)
        if not trainer.run(stop, lambda line: print(line, flush=True)):
            print(f"stopped at step {trainer.step}; the same command goes on from here", flush=True)
            return STOPPED + int(stop.signal or 0)
    delta = {name: value.to(torch.bfloat16) for name, value in trainer.weights().items()}
    save_tensors(options.work / DELTA.name, delta, parts=PARTS)
    for split in ("test", "test-unseen"):
        _score(trainer, split, scenes(art, split, options.score), options.work)
    if tests:
        _score(trainer, "photographs", tests[: options.score], options.work)
    return 0


def _score(trainer: Trainer, name: str, pictures: Sequence[Picture], work: Path) -> None:
    features = _features(work, trainer.model, pictures)
    list(features.fill(trainer.model, trainer.processor, pictures))
    print(json.dumps({"split": name} | score(trainer, pictures, features)), flush=True)


def _features(work: Path, model: Any, pictures: Sequence[Picture]) -> Features:
    """Those of these pictures, and of no others that lie in the same folder."""
    width = model.config.vision_config.hidden_size
    return Features(work / f"{digest(pictures)[:16]}.features", len(pictures), TOKENS, width)


def _options() -> argparse.Namespace:
    parser = Parser(prog="python -m vtr_vllm.training.photo", description=__doc__)
    add = parser.add_argument
    add("--parts", type=Path, default=FOLDER)
    add("--work", type=Path, default=Path("build/photo-training"))
    add("--scenes", type=count, default=2000, help="scenes to train on (default: 2000)")
    add("--photographs", type=Path, help="JSON Lines: image, question, answers")
    add("--tests", type=Path, help="the same, to score")
    add("--score", type=count, default=100, help="pictures of each split to score (default: 100)")
    add("--steps", type=count, default=Recipe.steps, help=f"(default: {Recipe.steps})")
    add("--threads", type=count, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
