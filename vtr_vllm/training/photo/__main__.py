"""Train the photo model, or go on; score it, and write what was learned."""

from __future__ import annotations

import argparse
import json
import signal
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vtr_vllm.photo.model import TOKENS, assemble
from vtr_vllm.photo.parts import fetch_art
from vtr_vllm.training.photo.packing import pack
from vtr_vllm.training.photo.pictures import Features, Picture, digest, photographs, scenes
from vtr_vllm.training.photo.train import Recipe, Trainer


def main() -> None:
    """Read the command line and train."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    model, processor = assemble(options.parts)
    art = fetch_art(options.parts)
    pictures = scenes(art, "train", options.scenes)
    if options.photographs:
        pictures += photographs(options.photographs, "photograph")
    features = _features(options.work, model, pictures)
    for done in features.fill(model, processor, pictures):
        if done % 200 == 0:
            print(f"tower: {done} of {len(pictures)} pictures", flush=True)
    trainer = Trainer(
        model, processor, pictures, features, Recipe(steps=options.steps), options.work
    )
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    signal.signal(signal.SIGINT, lambda *_: ended.append(1))
    finished = trainer.run(lambda: bool(ended), lambda line: print(line, flush=True))
    delta = {
        name: value.to(torch.bfloat16).contiguous() for name, value in trainer.weights().items()
    }
    save_file(delta, options.work / "delta.safetensors", {"format": "pt"})
    if finished or options.score_now:
        for split in ("test", "test-unseen"):
            _score(trainer, split, scenes(art, split, options.score), options.work)
        if options.tests:
            found = photographs(options.tests, "photograph")[: options.score]
            _score(trainer, "photographs", found, options.work)


def _score(trainer: Trainer, name: str, pictures: Sequence[Picture], work: Path) -> None:
    """Share of questions whose answer is said token for token, by kind."""
    features = _features(work, trainer.model, pictures)
    list(features.fill(trainer.model, trainer.processor, pictures))
    right: dict[str, list[bool]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        packed = pack(trainer.processor, picture)
        with torch.no_grad():
            said = trainer.logits(trainer.rows(features[index], packed)).argmax(-1)
        same = (said == packed.answers).tolist()
        owner = packed.question[packed.predicting].tolist()
        for i, question in enumerate(picture.questions):
            right[question.kind].append(all(s for s, o in zip(same, owner, strict=True) if o == i))
    every = [r for of_kind in right.values() for r in of_kind]
    kinds = {kind: round(sum(r) / len(r), 3) for kind, r in sorted(right.items())}
    print(
        json.dumps({"split": name, "n": len(every), "right": sum(every) / len(every)} | kinds),
        flush=True,
    )


def _features(work: Path, model: Any, pictures: Sequence[Picture]) -> Features:
    """Those of these pictures, and of no others that lie in the same folder."""
    width = model.config.vision_config.hidden_size
    name = digest(pictures, model.model.vision_tower)[:16]
    return Features(work / f"{name}.features", len(pictures), TOKENS, width)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vtr_vllm.training.photo", description=__doc__)
    parser.add_argument("--parts", type=Path, default=Path("build/photo-parts"))
    parser.add_argument("--work", type=Path, default=Path("build/photo-training"))
    parser.add_argument("--scenes", type=int, default=2000, help="scenes to train on")
    parser.add_argument("--photographs", type=Path, help="JSON Lines: image, question, answers")
    parser.add_argument("--tests", type=Path, help="the same, to score")
    parser.add_argument("--score", type=int, default=100, help="pictures of each split to score")
    parser.add_argument("--score-now", action="store_true", help="score before the end, too")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
