import numpy as np
import pytest

from vtr_vllm.adaptive import Prompt
from vtr_vllm.search.adaptive.fitting import (
    fit,
    matrix,
    only_images,
    only_words,
    predictions,
    rough_predictions,
)

PROMPTS = [Prompt((1, 2, number % 2, 50 + number % 7), (144,)) for number in range(120)]
EVEN = np.array([number % 2 == 0 for number in range(120)], dtype=float)
SCORES = np.stack([EVEN, np.ones(120), 1 - EVEN / 2], axis=1)


def test_words_that_tell_are_found():
    predictor, across = fit(matrix(PROMPTS), SCORES, seed=0)
    assert np.abs(across[:, 0] - EVEN).max() < 0.2  # of prompts that it had not seen
    assert across[:, 1].min() > 0.98  # nothing to tell apart
    assert np.abs(across[:, 2] - SCORES[:, 2]).max() < 0.2  # half right is half right
    assert predictions(predictor, PROMPTS) == pytest.approx(across, abs=0.2)


def test_images_alone_tell_nothing_here():
    _, across = fit(only_images(matrix(PROMPTS)), SCORES, seed=0)
    assert np.abs(across[:, 0] - 0.5).max() < 0.1
    _, across = fit(only_words(matrix(PROMPTS)), SCORES, seed=0)
    assert np.abs(across[:, 0] - EVEN).max() < 0.2


def test_many_schedules_at_once():
    rough = rough_predictions(matrix(PROMPTS), SCORES, seed=0)
    assert rough.shape == SCORES.shape
    assert ((rough[:, 0] > 0.5) == (EVEN > 0.5)).all()


def test_the_same_every_time():
    first, second = (fit(matrix(PROMPTS), SCORES, seed=1) for _ in range(2))
    assert first[0].to_dict() == second[0].to_dict()
    assert (first[1] == second[1]).all()
