"""A few steps of training: all phases, and a run that was interrupted."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.world import Density
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.training.demo.shards import Crew
from vtr_vllm.training.demo.train import Recipe, Trainer

THIN = Density(objects=(4, 6), marks=(1, 2), noise=9)
TINY = Recipe(
    shards=1,
    naming_steps=2,
    naming_images=2,
    images=1,
    questions=3,
    most_steps=2,
    decay_steps=1,
    stages=(THIN,),
    stage_accuracy=(),
    talk_steps=2,
)


class Interrupted(Exception):
    """The run ends here."""


class Stopping(Trainer):
    """Saves and stops at a step of a phase."""

    at: tuple[int, int]

    def step(self, crew: Crew) -> None:
        if (self.progress.phase, self.progress.step) == self.at:
            self.save()
            raise Interrupted
        super().step(crew)


def trained(work: Path, stop: tuple[int, int] | None = None) -> Trainer:
    """Train to the end, or to a step of a phase, saving there."""
    trainer = Trainer(TINY, work) if stop is None else Stopping(TINY, work)
    if isinstance(trainer, Stopping):
        trainer.at = stop
    with Crew(trainer.model, 1) as crew, suppress(Interrupted):
        trainer.run(crew)
    return trainer


@pytest.mark.parametrize("stop", [(2, 1), (3, 1)])
def test_an_interrupted_run_ends_where_a_whole_one_does(
    tmp_path: Path, stop: tuple[int, int]
) -> None:
    whole = trained(tmp_path / "whole")
    assert whole.done
    assert (whole.progress.phase, whole.progress.step) == (3, TINY.talk_steps)
    trained(tmp_path / "parts", stop)
    rest = trained(tmp_path / "parts")
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, rest.model.get_parameter(name)), name


def test_the_talk_may_begin_with_weights_of_an_earlier_run(tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path)
    trainer.begin_talk(CHECKPOINT)
    weights = load_file(CHECKPOINT / "model.safetensors")
    word = "language_model.model.embed_tokens.weight"
    assert torch.equal(
        trainer.model.model.language_model.embed_tokens.weight, weights[word].float()
    )
    with Crew(trainer.model, 1) as crew:
        trainer.run(crew)
    assert trainer.done


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    Trainer(TINY, tmp_path).save()
    with pytest.raises(ConfigurationError, match="with seed 1 and not 2"):
        Trainer(replace(TINY, seed=2), tmp_path)
