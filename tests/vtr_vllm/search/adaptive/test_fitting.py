import numpy as np
import pytest

from vtr_vllm.adaptive import Prompt
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.search.adaptive.fitting import (
    fit,
    matrix,
    only_images,
    only_words,
    predictions,
    rough_predictions,
)

PROMPTS = [Prompt((1, 2, number % 2, 50 + number % 7), (144,)) for number in range(120)]
ALONE = range(120)
EVEN = np.array([number % 2 == 0 for number in range(120)], dtype=float)
SCORES = np.stack([EVEN, np.ones(120), 1 - EVEN / 2], axis=1)


def test_words_that_tell_are_found():
    predictor, across = fit(matrix(PROMPTS), SCORES, ALONE, seed=0)
    assert np.abs(across[:, 0] - EVEN).max() < 0.2  # of prompts that it had not seen
    assert across[:, 1].min() > 0.98  # nothing to tell apart
    assert np.abs(across[:, 2] - SCORES[:, 2]).max() < 0.2  # half right is half right
    assert predictions(predictor, PROMPTS) == pytest.approx(across, abs=0.2)


def test_images_alone_tell_nothing_here():
    _, across = fit(only_images(matrix(PROMPTS)), SCORES, ALONE, seed=0)
    assert np.abs(across[:, 0] - 0.5).max() < 0.1
    _, across = fit(only_words(matrix(PROMPTS)), SCORES, ALONE, seed=0)
    assert np.abs(across[:, 0] - EVEN).max() < 0.2


def test_many_schedules_at_once():
    rough = rough_predictions(matrix(PROMPTS), SCORES, ALONE, seed=0)
    assert rough.shape == SCORES.shape
    assert ((rough[:, 0] > 0.5) == (EVEN > 0.5)).all()


def test_the_same_every_time():
    first, second = (fit(matrix(PROMPTS), SCORES, ALONE, seed=1) for _ in range(2))
    assert first[0].to_dict() == second[0].to_dict()
    assert (first[1] == second[1]).all()


def test_what_an_image_s_other_prompts_say_is_not_known_of_a_new_one():
    """Each image has a word of its own, as a conversation has, and is answered right or not."""
    dice = np.random.default_rng(0)
    images = [number // 6 for number in range(240)]
    right = dice.integers(0, 2, 40).astype(float)[images]
    prompts = [Prompt((1, 2, 100 + image), (144,)) for image in images]
    found, scores = matrix(prompts), np.stack([right, 1 - right], axis=1)
    for guess in (fit, lambda *given: (None, rough_predictions(*given))):
        _, apart = guess(found, scores, range(240), 0)
        assert ((apart[:, 0] > 0.5) == (right > 0.5)).mean() > 0.95
        _, together = guess(found, scores, images, 0)
        assert ((together[:, 0] > 0.5) == (right > 0.5)).mean() < 0.7


def test_one_image_alone_teaches_nothing():
    with pytest.raises(ConfigurationError, match="all items of a family's data share images"):
        fit(matrix(PROMPTS), SCORES, [0] * 120, seed=0)
