"""The losses that help reading along, on attention small enough to check by hand."""

import math

import pytest
import torch

from vtr_vllm.demo.model import Trace
from vtr_vllm.demo.splits import USUAL
from vtr_vllm.demo.tokenizer import FIRST_VISION, PREFIX
from vtr_vllm.training.demo.batches import Pack, alone, draw_questions, draw_scenes, pack_talks
from vtr_vllm.training.demo.losses import looking_loss

SCENES, RNGS = draw_scenes(5, 1, USUAL)


def trace_with(masses: list[float]) -> tuple[Trace, Pack]:
    """Return a trace of one-head layers that put ``masses`` on the first target, and its pack."""
    question = next(q for q in draw_questions(RNGS[0], SCENES[0], 40) if q.kind == "color")
    pack = pack_talks(alone([[question]]))
    attention = []
    for mass in masses:
        seen = torch.zeros(1, 1, 1, len(PREFIX) + 10)
        seen[..., FIRST_VISION + question.targets[0]] = mass
        attention.append(seen)
    return Trace([], attention), pack


@pytest.mark.parametrize("masses", [[0.5, 0.2], [0.2, 0.5], [0.0, 0.6]])
def test_any_layer_may_look(masses: list[float]) -> None:
    trace, pack = trace_with(masses)
    chance = 1 - math.prod(1 - m for m in masses)
    assert looking_loss(trace, pack).item() == pytest.approx(-math.log(chance), abs=1e-4)
