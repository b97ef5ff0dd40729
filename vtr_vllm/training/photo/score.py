"""How many questions a trained photo model answers right, and how many it would beside another picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtr_vllm.search.statistics import bootstrap_interval
from vtr_vllm.training.photo.packing import pack
from vtr_vllm.training.photo.pictures import Features, Picture
from vtr_vllm.training.photo.train import Trainer

__all__ = ["score"]


def score(trainer: Trainer, pictures: Sequence[Picture], features: Features) -> dict[str, Any]:
    """Share of questions whose answer is said token for token, in all, by kind, and beside the next picture.

    The last is what can be known without seeing. ``interval``: 95%, of pictures drawn anew, since
    questions about one picture are right or wrong together.
    """
    own = [_right(trainer, p, features[i]) for i, p in enumerate(pictures)]
    other = [_right(trainer, p, features[(i + 1) % len(pictures)]) for i, p in enumerate(pictures)]
    kinds: dict[str, list[bool]] = defaultdict(list)
    for picture, right in zip(pictures, own, strict=True):
        for question, is_right in zip(picture.questions, right, strict=True):
            kinds[question.kind].append(is_right)
    return {
        "n": sum(len(right) for right in own),
        "right": _share(own),
        "interval": _interval(own),
        "beside another picture": _share(other),
        "kinds": {kind: round(sum(r) / len(r), 3) for kind, r in sorted(kinds.items())},
    }


@torch.no_grad()
def _right(trainer: Trainer, picture: Picture, states: Tensor) -> list[bool]:
    """Of each question, whether every token of its answer is the likeliest behind those before it."""
    packed = pack(trainer.processor, picture)
    said = trainer.logits(trainer.rows(states, packed)).argmax(-1)
    owner, same = packed.question[packed.predicting], said == packed.answers
    return [bool(same[owner == i].all()) for i in range(len(picture.questions))]


def _share(of_pictures: Sequence[Sequence[bool]]) -> float:
    return round(sum(map(sum, of_pictures)) / sum(map(len, of_pictures)), 4)


def _interval(of_pictures: Sequence[Sequence[bool]]) -> tuple[float, float]:
    values = [float(right) for answers in of_pictures for right in answers]
    pictures = [number for number, answers in enumerate(of_pictures) for _ in answers]
    low, high = bootstrap_interval(values, pictures)
    return round(low, 4), round(high, 4)
