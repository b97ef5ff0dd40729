"""A few steps: an interrupted run, what a step draws, and the checkpoint that is written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import Schedule
from vtr_vllm.training.demo.shards import Crew
from vtr_vllm.training.registers.demo.evaluate import CONTROLS
from vtr_vllm.training.registers.demo.losses import job_loss
from vtr_vllm.training.registers.demo.train import Recipe, Trainer

STANDS = ("registers", *CONTROLS)
TINY = Recipe(
    registers=4,
    counts=(4, 2),
    layers=(3,),
    shards=1,
    images=1,
    questions=3,
    steps=4,
    moving_steps=2,
    warmup=1,
    decay_steps=1,
    help_steps=2,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the command trains: several add up gradients in whatever order they come."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(work: Path, recipe: Recipe = TINY, stop: int | None = None) -> Trainer:
    """Train to the end, or save at a step and stop there."""
    trainer = Trainer(recipe, CHECKPOINT, work)
    with Crew(trainer.model, 1, job_loss) as crew:
        if stop is None:
            trainer.run(crew)
        else:
            for _ in range(stop):
                trainer.step(crew)
            trainer.save()
    return trainer


def test_an_interrupted_run_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", stop=3)
    rest = trained(tmp_path / "parts")
    assert whole.progress.step == rest.progress.step == TINY.steps
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, rest.model.get_parameter(name)), name


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    Trainer(TINY, CHECKPOINT, tmp_path).save()
    with pytest.raises(
        ConfigurationError, match=r"with layers \[3\] and not \[4\]; give the same again"
    ):
        Trainer(replace(TINY, layers=(4,)), CHECKPOINT, tmp_path)


def test_a_state_of_other_weights_is_refused(tmp_path: Path) -> None:
    """The tower and the words are not in it: they are read from the weights that it began with."""
    Trainer(TINY, CHECKPOINT, tmp_path / "work").save()
    start = shutil.copytree(CHECKPOINT, tmp_path / "start")
    weights = load_file(start / "model.safetensors")
    next(iter(weights.values())).add_(1)
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match="with start"):
        Trainer(TINY, start, tmp_path / "work")


def test_the_drop_comes_forward_and_the_help_fades(tmp_path: Path) -> None:
    trainer = Trainer(Recipe(counts=(16, 8), layers=(3,)), CHECKPOINT, tmp_path)
    seen = []
    for step in (0, 250, 500, 1000, 1700):
        trainer.progress.step = step
        first, second = trainer.jobs()
        assert (first.first, second.first) == (8 * step, 8 * step + 4)
        assert first.kept == second.kept
        seen.append((first.layer, round(first.help_weight, 2)))
    assert seen == [(9, 0.4), (6, 0.3), (3, 0.2), (3, 0.0), (3, 0.0)]
    trainer.recipe = replace(trainer.recipe, layers=(2, 3))
    drawn = set()
    for step in range(600, 640):
        trainer.progress.step = step
        drawn.add((trainer.jobs()[0].kept, trainer.jobs()[0].layer))
    assert drawn == {(16, 2), (8, 2), (16, 3), (8, 3)}


def test_the_command_writes_a_checkpoint_with_registers(tmp_path: Path) -> None:
    """What is frozen is as it was."""
    options = ["--registers", "2", "--layers", "2", "3", "--steps", "1", "--samples", "4"]
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, "-m", "vtr_vllm.training.registers.demo", *options, *folders],
        capture_output=True,
        text=True,
        check=True,
    )
    scores = json.loads(done.stdout.splitlines()[-1])
    assert set(scores) == {"test", "test-hard"}
    alone = {f"{name} {kept}, {layer}" for name in STANDS for kept in (2, 1) for layer in (2, 3)}
    assert set(scores["test"]) == {"untouched", "registers, nothing dropped", *alone}
    made = [Schedule.load(file) for file in (tmp_path / "out" / "schedules").iterdir()]
    assert {(one.name, one.cuts) for one in made} == {
        (f"registers-{kept}-before-{layer}", (layer,)) for kept in (2, 1) for layer in (2, 3)
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vtr_registers"] == 2
    before, behind = (
        load_file(folder / "model.safetensors") for folder in (CHECKPOINT, tmp_path / "out")
    )
    assert behind.pop("registers").shape == (2, 128)
    assert before.keys() == behind.keys()
    same = {name for name in before if torch.equal(before[name], behind[name])}
    assert {name for name in before if "tower" in name or "projector" in name} <= same
    assert not any("mlp" in name and "language_model" in name for name in same)
