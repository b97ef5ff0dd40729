"""A few steps of training: both phases, and a run that was interrupted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vtr_vllm.demo.shards import Crew
from vtr_vllm.demo.train import Recipe, Trainer
from vtr_vllm.demo.world import Density

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
)


def trained(work: Path, stop: int | None = None) -> Trainer:
    """Train to the end, or to step ``stop`` of phase 2, saving there."""
    trainer = Trainer(TINY, work)
    with Crew(trainer.model, 1) as crew:
        if stop is None:
            trainer.run(crew)
        else:
            while (trainer.progress.phase, trainer.progress.step) != (2, stop):
                trainer.step(crew)
                if (trainer.progress.phase, trainer.progress.step) == (1, TINY.naming_steps):
                    trainer.begin_questions(trainer.progress.sums["norm"] / TINY.naming_steps)
            trainer.save()
    return trainer


def test_an_interrupted_run_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    assert (whole.progress.phase, whole.progress.step) == (2, whole.last_step())
    trained(tmp_path / "parts", stop=1)
    rest = trained(tmp_path / "parts")
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, rest.model.get_parameter(name)), name


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    Trainer(TINY, tmp_path).save()
    with pytest.raises(ValueError, match="another recipe"):
        Trainer(replace(TINY, seed=2), tmp_path)
