"""The in-process backend, on the demo model: answers depend on what is asked alone."""

import math
from dataclasses import replace

import pytest

from tests.vtr_vllm.search.conftest import MAX_TOKENS
from vtr_vllm.errors import EvaluationFailed
from vtr_vllm.schedules import RankRule, fastv, random, uniform
from vtr_vllm.search.answer_metrics import score
from vtr_vllm.search.answers import TOP_LOGPROBS, EngineOptions, Task
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.candidates import Candidate, unreduced
from vtr_vllm.search.converters import from_demo
from vtr_vllm.search.vllm_evaluator import VLLMEvaluator

pytestmark = pytest.mark.engine

VISION = 144


def accuracy(tasks, batch):
    scores = [
        score(task.item.metric, answer.text, task.item.answers)
        for task, answer in zip(tasks, batch.answers, strict=True)
    ]
    return sum(scores) / len(scores)


@pytest.fixture
def kinds(engine):
    """No reduction, two attention cuts, a random one, a blind one, a small image."""
    geometry = engine.geometry
    forms = [fastv(geometry, 0.5), fastv(geometry, 0.25), random(geometry, 0.5)]
    small = Candidate(unreduced(geometry).keep, image_scale=0.05)
    blind = Candidate.of(uniform(geometry, 0.25), VISION)
    return [unreduced(geometry), *map(Candidate.of, forms), blind, small]


def test_answers_depend_on_the_list_alone(engine, demo, kinds):
    """Bit for bit: a search that is resumed must see what the uninterrupted one saw."""
    first = [Task(candidate, item) for item in demo.items[:20] for candidate in kinds]
    other = [Task(candidate, item) for item in demo.items[10:] for candidate in kinds[::-2]]
    once = engine.run(first)
    engine.run(other)
    engine.run(first[5:8])
    assert engine.run(first) == once


def test_images_that_the_cache_of_vllm_has_dropped_are_asked_about_again(demo, kinds, monkeypatch):
    """It holds some of a large data set, and drops others than its other side thinks."""
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_PLUGINS"):
        monkeypatch.setenv(name, "")  # so that what the evaluator sets does not stay
    engine = VLLMEvaluator(EngineOptions("demo", MAX_TOKENS, {}, 1))
    tasks = [Task(candidate, item) for item in demo.items[:6] for candidate in kinds]
    once = engine.run(tasks)
    engine._llm.llm_engine.engine_core.engine_core.mm_receiver_cache.clear_cache()
    assert engine.run(tasks) == once


def test_an_answer_is_complete(engine, demo, kinds):
    tasks = [Task(candidate, item) for item in demo.items[:8] for candidate in kinds]
    batch = engine.run(tasks)
    assert len(batch.answers) == len(tasks)
    for task, answer in zip(tasks, batch.answers, strict=True):
        assert answer.n_vision == VISION
        assert answer.n_text >= len(task.item.question.split())
        assert 1 <= len(answer.steps) <= MAX_TOKENS
        said = "".join(step.token for step in answer.steps)
        assert said.replace(" ", "").startswith(answer.text.replace(" ", ""))
        for step in answer.steps:
            assert len(step.logprobs) <= TOP_LOGPROBS
            assert step.logprobs[step.token] == max(step.logprobs.values())
            assert 0.5 < sum(map(math.exp, step.logprobs.values())) < 1 + 1e-4


def test_a_conversation_is_asked_with_all_its_images(engine, tmp_path):
    from_demo("calibration-talk", 4, tmp_path / "talks.jsonl")
    talks = Dataset.load(tmp_path / "talks.jsonl").items
    half = Candidate.of(uniform(engine.geometry, 0.5), None)
    candidates = [unreduced(engine.geometry), half]
    tasks = [Task(candidate, item) for item in talks for candidate in candidates]
    assert {len(item.image_hashes) for item in talks} == {1, 2}
    for task, answer in zip(tasks, engine.run(tasks).answers, strict=True):
        said = " ".join(text for turn in task.item.history for text in (turn.question, turn.answer))
        assert answer.n_vision == VISION * len(task.item.image_hashes)
        assert answer.n_text > len(said.split())


def test_what_is_left_of_the_image_matters(engine, demo, kinds):
    whole, half, _, _, _, small = kinds

    def asked(candidate):
        tasks = [Task(candidate, item) for item in demo.items]
        return accuracy(tasks, engine.run(tasks))

    assert asked(whole) > 0.9  # what the demo model can do
    assert asked(small) < asked(whole)
    assert asked(half) < asked(whole)


def test_counts_that_cuts_found_are_told(engine, demo):
    keep = (1.0, 1.0, *[0.9] * 10)
    shares = [Candidate(keep, (RankRule.parse(f"last@{share}"),)) for share in (0.3, 0.9)]
    items = demo.items[:8]
    few, many = (engine.run([Task(each, item) for item in items]).answers for each in shares)
    assert len({answer.found for answer in few}) > 1, "prompts differ"
    for less, more in zip(few, many, strict=True):
        assert less.found[:2] == more.found[:2] == (VISION, VISION)
        assert 1 <= less.found[2] <= more.found[2] <= round(0.9 * VISION)
        assert len(set(less.found[2:])) == 1
    (plain,) = engine.run([Task(Candidate.of(fastv(engine.geometry, 0.5)), items[0])]).answers
    assert plain.found is None


def test_the_mean_keep_of_equal_counts_is_one_candidate(engine, demo):
    """A schedule and its counts for prompts of this size give the same tokens the same way."""
    schedule = fastv(engine.geometry, 0.5)
    answers = [
        engine.run([Task(candidate, item) for item in demo.items[:8]]).answers
        for candidate in (Candidate.of(schedule), Candidate.of(schedule, VISION))
    ]
    assert answers[0] == answers[1]


def test_a_prompt_that_is_too_long_is_refused(engine, demo):
    whole = unreduced(engine.geometry)
    good = [Task(whole, item) for item in demo.items[:10]]
    before = engine.run(good)
    long = replace(demo.items[0], question="What color is the B? " * 200)
    with pytest.raises(EvaluationFailed, match="refused item .*line .*512"):
        engine.run([*reversed(good), Task(whole, long)])
    assert engine.run(good) == before


def test_an_image_that_has_gone_is_refused(engine, demo, tmp_path):
    whole = unreduced(engine.geometry)
    gone = replace(demo.items[0], image=tmp_path / "gone.png")
    with pytest.raises(EvaluationFailed, match="refused item .*line .*gone.png cannot be read"):
        engine.run([Task(whole, demo.items[1]), Task(whole, gone)])
    assert len(engine.run([Task(whole, demo.items[1])]).answers) == 1
