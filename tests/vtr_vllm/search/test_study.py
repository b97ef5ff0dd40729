"""Scoring candidates: nothing runs twice, and nothing is given up that would have passed."""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.search.simulated import PLACES, SimulatedEvaluator, items
from vtr_vllm.errors import ConfigurationError, EvaluationFailed
from vtr_vllm.schedules import RankRule
from vtr_vllm.search import study as study_module
from vtr_vllm.search.answers import Evaluator, Task
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.candidates import Candidate, unreduced
from vtr_vllm.search.evaluation import Evaluation
from vtr_vllm.search.journal import Journal
from vtr_vllm.search.outcomes import outcome, utility_range
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.stopping import LEAST_GROUPS, likely_highest
from vtr_vllm.search.study import TOGETHER, Study
from vtr_vllm.search_options import Objective

BLOCK, COUNT = 10, 35
LAYERS, VISION = 5, 16
WHOLE = Candidate((1.0,) * LAYERS)
RULES = [RankRule.parse("saliency")] * 2 + [RankRule.parse("last")] * (LAYERS - 2)


def kept(*counts: int) -> Candidate:
    return Candidate.from_counts(counts, RULES, VISION)


POOR = kept(1, 1, 1, 1, 1)
HALF = kept(16, 16, 8, 8, 8)
GOOD = kept(16, 16, 16, 8, 8)
EVERY = [kept(16, 16, a, b, c) for a, b, c in [(8, 4, 2), (12, 9, 4), (6, 6, 6), (16, 5, 0)]]
candidates = st.lists(st.integers(0, VISION), min_size=LAYERS, max_size=LAYERS).map(
    lambda counts: kept(*sorted(counts, reverse=True))
)
objectives = st.sampled_from(["accuracy", "label-free"])


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "BLOCK", BLOCK)
        patch.setattr(study_module, "SMALL_BLOCKS", ())
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return items(tmp_path_factory.mktemp("study"), COUNT)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory) -> Dataset:
    """Enough that the differences to the unreduced model count."""
    return items(tmp_path_factory.mktemp("hundred"), 100)


Make = Callable[..., Study]


@pytest.fixture
def make(data, tmp_path) -> Make:
    """Studies of one journal file, each as a new process would open it."""

    def open_study(evaluator: Evaluator, objective: Objective = "accuracy") -> Study:
        url = f"sqlite:///{tmp_path / 'journal.sqlite'}"
        journal = Journal(url, "test", evaluator.versions, seed=0)
        return Study(evaluator, data, journal, objective, Progress())

    return open_study


def in_memory(data: Dataset, evaluator: Evaluator, objective: Objective) -> Study:
    journal = Journal("sqlite://", "test", evaluator.versions, seed=0)
    return Study(evaluator, data, journal, objective, Progress())


def direct(data: Dataset, candidate: Candidate, items: int = COUNT) -> Evaluation:
    """The evaluation without a study: item by item, straight from the model."""
    model = SimulatedEvaluator(LAYERS)
    found = [
        outcome(item, model.answer(Task(candidate, item)), model.answer(Task(WHOLE, item)).steps)
        for item in data.items[:items]
    ]
    return Evaluation(candidate, tuple(found), items, "accuracy", data.groups[:items])


def repeated(evaluator: SimulatedEvaluator) -> list[Task]:
    asked = Counter((task.candidate, task.item.id) for task in evaluator.tasks)
    return [task for task, times in asked.items() if times > 1]


def test_values_are_what_a_direct_computation_gives(make, data):
    study = make(SimulatedEvaluator(LAYERS))
    asked = [WHOLE, *EVERY, POOR]
    assert study.evaluate("any", asked) == [direct(data, candidate) for candidate in asked]
    assert study.evaluate("any", asked, 20) == [direct(data, c, 20) for c in asked]
    found = study.evaluate("any", [HALF])[0]
    assert found.complete
    assert found.accuracy == sum(o.score for o in found.outcomes) / COUNT
    assert found.value == pytest.approx(
        found.accuracy + 0.01 * sum(o.logprob for o in found.outcomes) / COUNT
    )
    assert found.highest_possible == found.value


def test_label_free_needs_no_answers(make):
    study = make(SimulatedEvaluator(LAYERS), "label-free")
    whole, half, poor = study.evaluate("any", [WHOLE, HALF, POOR])
    assert whole.value == 0
    assert half.value == -math.fsum(o.divergence for o in half.outcomes) / COUNT
    assert poor.value < half.value < 0


@given(st.lists(st.tuples(st.lists(candidates, max_size=4), st.sampled_from([10, 20, None]))))
@settings(max_examples=25)
def test_no_evaluation_is_run_twice(data, calls):
    evaluator = SimulatedEvaluator(LAYERS)
    study = in_memory(data, evaluator, "accuracy")
    for asked, count in calls:
        study.evaluate("first", asked, count)
    again = Study(evaluator, data, study._journal, "accuracy", Progress())
    for asked, count in calls:
        again.evaluate("second", asked, count)
    assert repeated(evaluator) == []
    assert len(evaluator.tasks) == sum(cost.requests for cost in study.costs.values())


def test_a_longer_evaluation_runs_what_is_missing_only(make):
    evaluator = SimulatedEvaluator(LAYERS)
    study = make(evaluator)
    study.evaluate("any", [HALF], 20)
    assert len(evaluator.tasks) == 2 * 20  # and as much without reduction
    study.evaluate("any", [HALF])
    assert len(evaluator.tasks) == 2 * COUNT
    assert repeated(evaluator) == []


@pytest.mark.parametrize(
    ("count", "size"), [(400, 10), (40, 10), (39, 5), (20, 5), (19, 2), (3, 2)]
)
def test_a_small_data_set_has_smaller_blocks(tmp_path, monkeypatch, count, size):
    monkeypatch.setattr(study_module, "SMALL_BLOCKS", (5, 2))
    study = in_memory(items(tmp_path, count), SimulatedEvaluator(LAYERS), "accuracy")
    (first,) = study.evaluate("test", [GOOD], items=1)
    assert len(first.outcomes) == size


def test_items_are_taken_in_whole_blocks(make, data):
    study = make(SimulatedEvaluator(LAYERS))
    (found,) = study.evaluate("any", [HALF], 15)
    assert found == direct(data, HALF, 20)
    assert found.complete
    (found,) = study.evaluate("any", [HALF], 10_000)
    assert found == direct(data, HALF)
    assert study.costs["any"].stopped == 0


@given(st.lists(candidates, min_size=1, max_size=4), st.data(), objectives)
@settings(max_examples=30)
def test_giving_up_by_what_is_possible_rejects_none_that_would_have_passed(
    data, asked, draw, objective
):
    whole = in_memory(data, SimulatedEvaluator(LAYERS), objective).evaluate("any", asked)
    # the hardest floors are the values themselves
    floor = draw.draw(st.sampled_from([e.value for e in whole] + [-math.inf]) | st.floats(-1, 1))
    evaluator = SimulatedEvaluator(LAYERS)
    stopped = in_memory(data, evaluator, objective).evaluate("any", asked, floor=floor)
    for full, early in zip(whole, stopped, strict=True):
        assert early.outcomes == full.outcomes[: len(early.outcomes)]
        assert early.highest_possible >= full.value
        if full.value >= floor:
            assert early == full
        if not early.complete:
            assert early.highest_possible < floor


def test_stopping_early_saves_requests(make):
    evaluator = SimulatedEvaluator(LAYERS)
    study = make(evaluator)
    floor = study.unreduced().value - 0.05
    before = len(evaluator.tasks)
    (found,) = study.evaluate("any", [POOR], floor=floor)
    assert not found.complete
    assert len(found.outcomes) == len(evaluator.tasks) - before == BLOCK
    cost = study.costs["any"]
    assert (cost.stopped, cost.requests, cost.naive_requests) == (1, BLOCK, COUNT)


def test_stopping_early_goes_by_the_differences_to_the_unreduced_model(tmp_path):
    """Where its answers to all items are in the journal; else by what is possible, which takes longer."""
    data = items(tmp_path, 400)
    whole, poor = (direct(data, candidate, 400) for candidate in (WHOLE, EVERY[2]))
    assert 0.03 < whole.value - poor.value < 0.09, "a few points"
    floor = whole.value - 0.01
    values, full = ([o.utility("accuracy") for o in e.outcomes] for e in (poor, whole))
    width = utility_range("accuracy")

    def likely(seen: int) -> float:
        return likely_highest(values[:seen], full, data.groups, width)

    def possible(seen: int) -> float:
        begun = Evaluation(poor.candidate, poor.outcomes[:seen], 400, "accuracy", data.groups)
        return begun.highest_possible

    ends = range(BLOCK, 400, BLOCK)
    by_likely = next(end for end in ends if end >= LEAST_GROUPS and likely(end) < floor)
    by_possible = next(end for end in ends if possible(end) < floor)
    assert by_likely < by_possible

    study = in_memory(data, SimulatedEvaluator(LAYERS), "accuracy")
    study.unreduced()
    (found,) = study.evaluate("any", [poor.candidate], floor=floor)
    assert found.outcomes == poor.outcomes[:by_likely]
    unknown = in_memory(data, SimulatedEvaluator(LAYERS), "accuracy")
    (found,) = unknown.evaluate("any", [poor.candidate], floor=floor)
    assert found.outcomes == poor.outcomes[:by_possible]
    partly = in_memory(data, SimulatedEvaluator(LAYERS), "accuracy")
    partly.unreduced(400 - BLOCK)
    (found,) = partly.evaluate("any", [poor.candidate], floor=floor)
    assert found.outcomes == poor.outcomes[:by_possible]


def test_a_race_is_successive_halving(make, data):
    study = make(SimulatedEvaluator(LAYERS))
    field = [*EVERY, HALF, GOOD, POOR]
    ranked = study.race("race", field, [(10, 5), (20, 3), (COUNT, 2)])
    left = field
    for count, survivors in [(10, 5), (20, 3), (COUNT, 2)]:
        left = sorted(left, key=lambda c: -direct(data, c, count).value)[:survivors]
    assert ranked == [direct(data, candidate) for candidate in left]
    assert study.costs["race"].requests < len(field) * COUNT


def test_a_race_with_room_for_all_finds_the_best(make, data):
    study = make(SimulatedEvaluator(LAYERS))
    (best,) = study.race("race", [*EVERY, POOR], [(10, 5), (COUNT, 1)])
    assert best.value == max(direct(data, candidate).value for candidate in EVERY)


def test_equals_of_a_race_keep_their_order(make):
    twins = [kept(16, 16, 16, 16, count) for count in (15, 16, 14)]  # nothing is lost by any
    ranked = make(SimulatedEvaluator(LAYERS)).race("race", twins, [(COUNT, 3)])
    assert len({evaluation.value for evaluation in ranked}) == 1
    assert [evaluation.candidate for evaluation in ranked] == twins


def test_the_unreduced_answers_outlive_the_process(make, data):
    make(SimulatedEvaluator(LAYERS)).unreduced()
    evaluator = SimulatedEvaluator(LAYERS)
    study = make(evaluator, "label-free")
    assert study.evaluate("any", [HALF])[0].outcomes == direct(data, HALF).outcomes
    assert {task.candidate for task in evaluator.tasks} == {HALF}
    assert study.unreduced().outcomes == direct(data, WHOLE).outcomes
    assert len(evaluator.tasks) == COUNT


def test_a_journal_that_has_everything_starts_no_run(make):
    first = make(SimulatedEvaluator(LAYERS))
    found = first.evaluate("any", [WHOLE, HALF, *EVERY])
    evaluator = SimulatedEvaluator(LAYERS)
    again = make(evaluator)
    assert again.evaluate("any", [WHOLE, HALF, *EVERY]) == found
    assert evaluator.runs == 0
    assert again.costs == first.costs  # what ran before the interruption counts as well


def test_costs_count_reuse(make):
    study = make(SimulatedEvaluator(LAYERS))
    study.evaluate("first", [HALF, HALF, GOOD])
    cost = study.costs["first"]
    assert (cost.evaluations, cost.reused, cost.stopped) == (3, 1, 0)
    assert (cost.requests, cost.naive_requests) == (3 * COUNT, 3 * COUNT)  # with the unreduced
    study.evaluate("second", [GOOD, POOR])
    cost = study.costs["second"]
    assert (cost.evaluations, cost.reused) == (2, 1)
    assert (cost.requests, cost.naive_requests) == (COUNT, 2 * COUNT)


def test_occupancy_is_that_of_the_batches(make):
    study = make(SimulatedEvaluator(LAYERS))
    study.evaluate("any", [WHOLE, *EVERY])
    sizes = [
        (b - a) * (1 + len(EVERY)) for a, b in pairwise([0, 30, COUNT])
    ]  # three blocks of five
    room = sum(math.ceil(size / PLACES) * PLACES for size in sizes)
    cost = study.costs["any"]
    assert cost.busy == pytest.approx(sum(sizes))
    assert cost.room == pytest.approx(room)
    assert cost.occupancy == pytest.approx(sum(sizes) / room)
    assert study_module.Cost().occupancy == 0


def test_candidates_run_together_but_not_too_many(make):
    evaluator = SimulatedEvaluator(LAYERS)
    many = [kept(16, 16, a, b, 0) for a in range(8, 16) for b in range(4)]
    make(evaluator).evaluate("any", many, BLOCK)
    assert evaluator.runs == math.ceil((len(many) + 1) / TOGETHER)
    assert len(evaluator.tasks) == (len(many) + 1) * BLOCK


def test_blocks_run_together_but_not_too_many(make, monkeypatch):
    evaluator = SimulatedEvaluator(LAYERS)
    study = make(evaluator)
    study.unreduced()
    assert evaluator.runs == 1, "four blocks of one candidate"
    study.evaluate("any", EVERY[:3])
    assert evaluator.runs == 2, "and of three"
    monkeypatch.setattr(study_module, "TOGETHER", 2)
    study.evaluate("any", EVERY[3:])
    assert evaluator.runs == 4


@given(st.lists(candidates, min_size=1, max_size=4), st.data(), objectives)
@settings(max_examples=15)
def test_blocks_that_run_together_change_no_evaluation(hundred, asked, draw, objective):
    """With a floor, a candidate is given up after the block after which it would be by itself."""
    whole = in_memory(hundred, SimulatedEvaluator(LAYERS), objective).evaluate("any", asked)
    floor = draw.draw(st.sampled_from([e.value for e in whole] + [-math.inf]) | st.floats(-1, 1))
    together, one_by_one = SimulatedEvaluator(LAYERS), SimulatedEvaluator(LAYERS)
    known = draw.draw(st.booleans())

    def evaluate(evaluator):
        study = in_memory(hundred, evaluator, objective)
        if known:
            study.unreduced()
        return study.evaluate("any", asked, floor=floor)

    found = evaluate(together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "_blocks_it_lasts", lambda *_: 1)
        expected = evaluate(one_by_one)
    assert found == expected
    assert together.runs <= one_by_one.runs


def test_tasks_of_an_item_stand_together(make, data):
    """Its image is read once."""
    evaluator = SimulatedEvaluator(LAYERS)
    make(evaluator).evaluate("any", EVERY, BLOCK)
    together = 1 + len(EVERY)
    asked = [task.item for task in evaluator.tasks]
    assert asked == [item for item in data.items[:BLOCK] for _ in range(together)]


@pytest.mark.parametrize("failing", [1, 2, 4])
def test_a_failed_run_is_on_record_and_can_be_repeated(make, data, failing, monkeypatch):
    monkeypatch.setattr(study_module, "TOGETHER", 3)  # a run is a block
    broken = SimulatedEvaluator(LAYERS, fail_on={failing})
    study = make(broken)
    with pytest.raises(EvaluationFailed, match=f"run {failing} failed"):
        study.evaluate("any", [HALF, GOOD])
    states = study._journal.states()
    assert states.pop("failed") == 3  # the unreduced model and both
    assert states == ({"done": 3 * (failing - 1)} if failing > 1 else {})
    mended = SimulatedEvaluator(LAYERS)
    again = make(mended)
    assert again.evaluate("any", [HALF, GOOD]) == [direct(data, HALF), direct(data, GOOD)]
    assert len(broken.tasks) + len(mended.tasks) == 3 * COUNT
    assert again._journal.states() == {"done": 12, "failed": 3}


def test_the_same_study_can_go_on_after_a_failure(make, data, monkeypatch):
    monkeypatch.setattr(study_module, "TOGETHER", 2)
    study = make(SimulatedEvaluator(LAYERS, fail_on={2}))
    with suppress(EvaluationFailed):
        study.evaluate("any", [HALF])
    assert study.evaluate("any", [HALF]) == [direct(data, HALF)]


def test_a_stopped_process_leaves_its_rows_to_the_next(make, monkeypatch):
    monkeypatch.setattr(study_module, "TOGETHER", 2)

    class Stopped(SimulatedEvaluator):
        def run(self, tasks):
            raise KeyboardInterrupt

    study = make(Stopped(LAYERS))
    with pytest.raises(KeyboardInterrupt):
        study.evaluate("any", [HALF])
    assert study._journal.states() == {"running": 2}
    assert make(SimulatedEvaluator(LAYERS))._journal.states() == {"interrupted": 2}


def test_what_a_prompt_holds(make, data):
    study = make(SimulatedEvaluator(LAYERS, has_cls=True))
    assert (study.n_vision, study.same_n_vision) == (VISION, VISION)
    assert study.n_text == 5 + len(data.items[0].question.split())
    assert study.has_cls
    assert study.geometry.layers == LAYERS
    assert study.versions["model"] == "simulated"


def test_prompts_may_differ_in_size(make):
    study = make(SimulatedEvaluator(LAYERS, (16, 9)))
    assert (study.n_vision, study.same_n_vision) == (16, None)


def test_prompts_without_vision_tokens_are_refused(make):
    study = make(SimulatedEvaluator(LAYERS, (0,)))
    with pytest.raises(ConfigurationError, match="no prompt of .* has a vision token"):
        _ = study.n_vision


def test_unreduced_is_every_layer_in_full():
    assert unreduced(SimulatedEvaluator(LAYERS).geometry) == WHOLE
