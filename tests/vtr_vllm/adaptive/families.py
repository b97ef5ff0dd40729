"""A family for tests: three schedules, of which words tell the one that is needed."""

from __future__ import annotations

import numpy as np

from vtr_vllm.adaptive import Predictor, Prompt, ScheduleFamily, features
from vtr_vllm.adaptive.family import Calibration, member
from vtr_vllm.schedules import ModelGeometry, RankRule

GEOMETRY = ModelGeometry(
    layers=4, hidden_size=8, intermediate_size=16, heads=2, kv_heads=1, head_dim=4
)
KEEPS = ((0.25, 0.25, 0.0, 0.0), (0.5, 0.5, 0.25, 0.25), (1.0, 1.0, 0.5, 0.5))
EASY, HARD = 7, 8
"""Words: a prompt with the first is answered by every schedule, with the second by the last alone."""


def prompt(word: int, number: int = 0) -> Prompt:
    return Prompt((1, 2, word, 100 + number), (144,))


def family(
    geometry: ModelGeometry = GEOMETRY,
    keeps: tuple[tuple[float, ...], ...] = KEEPS,
    prompts: int = 200,
    hard: int = HARD,
) -> ScheduleFamily:
    """Half of its calibration is easy; ``hard`` is the word that says which half is not."""
    blind, asking = RankRule.parse("saliency"), RankRule.parse("last")
    members = tuple(
        member(
            f"family-{number}",
            geometry,
            keep,
            tuple([blind] * (keep[0] < 1) + [asking] * (keep[-1] < keep[0])),
        )
        for number, keep in enumerate(keeps, 1)
    )
    alone = set(features(Prompt((hard,), ())))
    (only,) = alone & set(features(prompt(hard))) - set(features(prompt(EASY)))
    fall = np.array([-30.0] * (len(members) - 1) + [0.0])
    predictor = Predictor((only,), fall[None], np.full(len(members), 3.0))
    seen = [prompt(hard if number % 2 else EASY, number) for number in range(prompts)]
    known = Calibration(
        np.array([predictor.predict(features(each)) for each in seen]),
        np.array([each.draw for each in seen]),
    )
    return ScheduleFamily("family", members, predictor, known)
