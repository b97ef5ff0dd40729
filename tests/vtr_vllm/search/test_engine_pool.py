"""Several engines as one evaluator."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vtr_vllm.search import parallel_engine
from tests.vtr_vllm.search.conftest import MAX_TOKENS
from vtr_vllm.errors import EvaluationFailed
from vtr_vllm.schedules import RankRule, fastv
from vtr_vllm.search import engine_pool
from vtr_vllm.search.answer_metrics import score
from vtr_vllm.search.answers import EngineOptions, Task
from vtr_vllm.search.calibration import Item
from vtr_vllm.search.candidates import Candidate, unreduced
from vtr_vllm.search.engine_pool import EnginePool, share


def item(name: str) -> Item:
    return Item(name, Path("no.png"), "?", ("yes",), "exact_match", None, 1, name)


tasks_of_items = st.lists(st.sampled_from("abcdefgh")).map(
    lambda names: [Task(Candidate((1.0,)), item(name)) for name in names]
)


@given(tasks_of_items, st.integers(1, 4))
def test_every_task_goes_to_one_engine_and_an_item_to_one_alone(tasks, engines):
    shares = share(tasks, engines)
    assert len(shares) == engines
    assert sorted(index for each in shares for index in each) == list(range(len(tasks)))
    assert all(each == sorted(each) for each in shares)
    names = [{tasks[index].item.id for index in each} for each in shares]
    assert sum(len(each) for each in names) == len({task.item.id for task in tasks})
    assert max(map(len, names)) - min(map(len, names)) <= 1


def test_an_engine_may_start_processes_of_its_own(monkeypatch):
    monkeypatch.setattr(engine_pool, "_serve", parallel_engine.serve)
    pool = EnginePool(EngineOptions("none"))
    assert pool.geometry == parallel_engine.GEOMETRY
    pool.close()
    assert pool._workers[0].process.exitcode == 0
    pool.close()


def test_an_engine_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(engine_pool, "_serve", parallel_engine.serve)
    monkeypatch.setattr(engine_pool, "_PATIENCE", 0.5)
    pool = EnginePool(EngineOptions("none", engine_args=parallel_engine.STUBBORN))
    pool._workers[0].pipe.send(("prompts", []))
    pool.close()
    assert pool._workers[0].process.exitcode == -signal.SIGKILL


def test_a_start_that_is_interrupted_leaves_no_engine(monkeypatch):
    monkeypatch.setattr(engine_pool, "_serve", parallel_engine.serve)
    started = []

    def interrupted(pool, worker):
        started.append(worker.process)
        raise KeyboardInterrupt

    monkeypatch.setattr(EnginePool, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        EnginePool(EngineOptions("none"))
    assert [process.is_alive() for process in started] == [False]


def test_an_exit_without_close_ends_the_engines():
    command = [sys.executable, "-m", "tests.vtr_vllm.search.parallel_engine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "none\n"), done.stderr


def score_of(pool: EnginePool, tasks: list[Task]) -> list[float]:
    answers = pool.run(tasks).answers
    return [
        score(task.item.metric, answer.text, task.item.answers)
        for task, answer in zip(tasks, answers, strict=True)
    ]


@pytest.mark.engine
def test_a_pool_knows_its_model(pool, engine):
    assert pool.geometry.layers == 12
    assert pool.versions["model"] == "demo"
    assert pool.versions["max_tokens"] == str(MAX_TOKENS)
    assert set(pool.versions) >= {"dtype", "vtr", "vllm"}
    assert pool.band_starts == (0, 2, 4, 6, 8, 10)
    assert pool.has_cls  # its tower is CLIP's


@pytest.mark.engine
def test_two_engines_answer_as_one(pool, engine, demo):
    half = Candidate.of(fastv(pool.geometry, 0.5))
    tasks = [Task(c, item) for item in demo.items for c in (unreduced(pool.geometry), half)]
    one, two = engine.run(tasks), pool.run(tasks)
    # batches differ, and with them the last bits; what is said does not
    assert [a.text for a in two.answers] == [a.text for a in one.answers]
    assert [(a.n_vision, a.n_text) for a in two.answers] == [
        (a.n_vision, a.n_text) for a in one.answers
    ]
    for ours, theirs in zip(two.answers, one.answers, strict=True):
        for first, second in zip(ours.steps, theirs.steps, strict=True):
            assert first.logprobs[first.token] == pytest.approx(
                second.logprobs[second.token], abs=1e-3
            )
    for batch in (one, two):
        assert len(tasks) <= batch.busy <= batch.room


@pytest.mark.engine
def test_no_task_is_no_answer(pool):
    assert pool.run([]).answers == ()


@pytest.mark.engine
def test_a_refused_task_fails_the_list_and_not_the_engines(pool, demo):
    """And what the engines had begun of that list is no answer to the next."""
    whole = unreduced(pool.geometry)
    good = [Task(whole, item) for item in demo.items]
    before = pool.run(good)
    bad = Task(Candidate((1.0, 1.0, 0.5), (RankRule.parse("last"),)), demo.items[0])
    with pytest.raises(EvaluationFailed, match="refused item .*line .*vtr_keep") as error:
        pool.run([*reversed(good), bad])
    assert f"{pool.geometry.layers}" in str(error.value)
    assert pool.run(good) == before


@pytest.mark.engine
@pytest.mark.slow
def test_an_engine_that_does_not_start_is_reported(tmp_path, capfd):
    with pytest.raises(EvaluationFailed, match="ended with exit code 1; its last words are above"):
        EnginePool(EngineOptions(str(tmp_path / "no-model")))
    assert "no-model" in capfd.readouterr().err


@pytest.mark.engine
def test_a_killed_engine_is_reported(pool, demo):
    """The last test here: the second engine does not come back."""
    tasks = [Task(unreduced(pool.geometry), item) for item in demo.items]
    os.kill(pool._workers[1].process.pid, signal.SIGKILL)
    for _ in range(2):  # while it goes, and once it has gone
        with pytest.raises(EvaluationFailed, match="process ended with exit code -9"):
            pool.run(tasks)


def test_prompts_are_as_admission_sees_them(engine, demo):
    """Words without vision tokens, and the images' sizes; nothing of a question is left out."""
    prompts = engine.prompts(demo.items[:6])
    assert {prompt.image_sizes for prompt in prompts} == {(144,)}
    by_question: dict[str, set[tuple[int, ...]]] = {}
    for item, prompt in zip(demo.items, prompts, strict=False):
        by_question.setdefault(item.question, set()).add(prompt.text)
    assert all(len(texts) == 1 for texts in by_question.values())
    assert len({prompt.text for prompt in prompts}) == len(by_question)
