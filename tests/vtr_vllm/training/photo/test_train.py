"""A training goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.photo.parts import PATCH
from vtr_vllm.photo.scenes import Thing
from vtr_vllm.training.photo.pictures import Picture
from vtr_vllm.training.photo.train import Recipe, Trainer

RECIPE = Recipe(rank=2, naming_steps=2, naming_pictures=2, steps=4, pictures=2)


@pytest.fixture
def make_trainer(
    make_tiny: Callable[[str], Any], pictures: list[Picture], tmp_path: Path
) -> Callable[..., Trainer]:
    named = [
        Picture(p.load, p.questions, p.name, (Thing(f"thing {i}", 0, (0, 0, PATCH, PATCH)),))
        for i, p in enumerate(pictures)
    ]
    sizes = (name for name in "abcdefgh")

    def make(folder: str, recipe: Recipe = RECIPE) -> Trainer:
        processor, model, features = make_tiny(next(sizes))
        return Trainer(model, processor, named, features, recipe, tmp_path / folder)

    return make


@pytest.mark.parametrize("stop", [(1, 1), (2, 0), (2, 2)])
def test_a_training_that_was_stopped_ends_with_the_same_weights(
    make_trainer: Callable[..., Trainer], stop: tuple[int, int]
) -> None:
    whole = make_trainer("whole")
    before = {name: weight.clone() for name, weight in whole.weights().items()}
    assert whole.run(lambda: False, print)
    first = make_trainer("stopped")
    assert not first.run(lambda: (first.phase, first.step) == stop, print)
    second = make_trainer("stopped")
    assert (second.phase, second.step) == stop
    assert second.run(lambda: False, print)
    for name, weight in whole.weights().items():
        assert torch.equal(second.weights()[name], weight), name
    changed = [not torch.equal(weight, before[name]) for name, weight in whole.weights().items()]
    assert all(changed)


def test_another_recipe_does_not_go_on(make_trainer: Callable[..., Trainer]) -> None:
    make_trainer("work").run(lambda: True, print)
    with pytest.raises(ConfigurationError, match="steps 4 and not 9"):
        make_trainer("work", Recipe(**{**vars(RECIPE), "steps": 9}))
