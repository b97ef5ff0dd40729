from itertools import combinations_with_replacement, pairwise
from types import SimpleNamespace

import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import RankRule
from vtr_vllm.search import g_search
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.g_search import GSearch, search
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.proposer import Proposer

N_VISION, LAYERS = 16, 6
STARTS = (2, 3, 4, 5)
TOLERANCE = 0.0075
"""Below one of 100 items; above what the log-probabilities, a hundredth of a nat's worth, can
lose while every answer stays right."""


class OwnNeeds(SimulatedEvaluator):
    """The paper's assumption, and nothing else: a layer needs its own number of tokens, the best
    of which are among those of the layer before, whatever the rule."""

    def quality(self, rule, layer):
        return 1.0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return items(tmp_path_factory.mktemp("g-search"), 300)


@pytest.fixture
def make(data):
    """A study of the first items; answers by the law that the other tests share."""

    def build(count=100, evaluator=None, **options):
        return study(evaluator or model(), data.take(count), **options)

    return build


def model():
    return SimulatedEvaluator(LAYERS, (N_VISION,))


def by_layer(counts):
    """Stage counts on all layers."""
    keep = [N_VISION] * STARTS[0]
    for count, (start, end) in zip(counts, pairwise([*STARTS, LAYERS]), strict=True):
        keep += [count] * (end - start)
    return keep


def candidate(counts):
    return Candidate.from_counts(by_layer(counts), [RankRule.parse("last")] * LAYERS, N_VISION)


def passing(searched, vectors, tolerance):
    floor = searched.unreduced().value - tolerance
    scored = searched.evaluate("exhaustive", [candidate(counts) for counts in vectors])
    return [c for c, found in zip(vectors, scored, strict=True) if found.value >= floor]


def test_nothing_within_the_tolerance_is_cheaper(make):
    searched = make(evaluator=OwnNeeds(LAYERS, (N_VISION,)))
    schedule, steps = search(searched, GSearch(STARTS, {}, TOLERANCE, grain=4), "g-search")
    found = tuple(step.count for step in steps)
    vectors = list(combinations_with_replacement(range(N_VISION, -1, -4), len(STARTS)))
    assert len(vectors) == 70
    good = passing(searched, vectors, TOLERANCE)
    assert 0 < len(good) < len(vectors)
    assert found in good
    assert sum(by_layer(found)) == min(sum(by_layer(counts)) for counts in good)
    assert schedule.counts(N_VISION) == tuple(by_layer(found))
    assert found[0] > found[-1]  # not just one count for all


def test_every_step_is_the_least_count_of_a_linear_scan(make):
    searched = make()
    _, steps = search(searched, GSearch(STARTS, {}, 0.05), "g-search")
    most, before = N_VISION, []
    for step in steps:
        deeper = len(STARTS) - len(before)
        options = [(*before, *[count] * deeper) for count in range(most + 1)]
        least = passing(searched, options, 0.05)[0]
        assert step.count == least[len(before)]
        assert step.evaluations <= 1 + most.bit_length()
        before.append(step.count)
        most = step.count


def test_steps_say_what_was_found(make):
    searched = make()
    schedule, steps = search(searched, GSearch(STARTS, {}, 0.05), "mine")
    assert [step.layer for step in steps] == list(STARTS)
    assert [step.count for step in steps] == sorted((s.count for s in steps), reverse=True)
    last = steps[-1]
    found = searched.evaluate("again", [Candidate.of(schedule, N_VISION)])[0]
    assert (last.value, last.accuracy) == (found.value, found.accuracy)
    assert last.mean_keep == pytest.approx(schedule.mean_keep)
    assert last.keep == last.count / N_VISION
    assert last.value >= searched.unreduced().value - 0.05
    assert (schedule.name, schedule.method, schedule.budget) == ("mine", "mine", None)
    assert schedule.parameters["tolerance"] == 0.05
    assert schedule.parameters["inner"] == "bisection"
    assert [step["count"] for step in schedule.parameters["steps"]] == [s.count for s in steps]
    assert searched.costs["mine"].evaluations == sum(step.evaluations for step in steps)


def test_a_second_search_runs_nothing(make, tmp_path):
    evaluator, url = model(), f"sqlite:///{tmp_path / 'journal.sqlite'}"
    settings = GSearch(STARTS, {}, 0.05)
    searched = make(evaluator=evaluator, journal=url)
    first = search(searched, settings, "g-search")
    ran = len(evaluator.tasks)
    assert search(searched, settings, "g-search") == first
    assert search(make(evaluator=evaluator, journal=url), settings, "g-search") == first
    assert len(evaluator.tasks) == ran


def test_hopeless_counts_are_stopped_early(make):
    searched = make(300)
    search(searched, GSearch(STARTS, {}, 0.005), "g-search")
    cost = searched.costs["g-search"]
    assert cost.stopped > 0
    assert cost.requests < cost.naive_requests


def test_counts_are_multiples_of_the_grain(make):
    _, steps = search(make(), GSearch(STARTS, {}, 0.05, grain=5), "g-search")
    assert {step.count for step in steps} <= {0, 5, 10, 15, 16}


def test_everything_may_go(make):
    searched = make()
    _, steps = search(searched, GSearch(STARTS, {}, 1.0), "g-search")
    assert {step.count for step in steps} == {0}


def test_bayes_comes_close_to_what_it_maximises(make):
    """Effectiveness plus lambda times efficiency, against every count of either stage."""
    weight = 0.3
    searched = make()
    settings = GSearch((2, 4), {}, 0.05, inner="bayes", weight=weight)
    schedule, (first, second) = search(searched, settings, "g-search")
    for step, before in ((first, None), (second, first.count)):
        most = N_VISION if before is None else before
        options = [(count if before is None else before, count) for count in range(most + 1)]
        candidates = [candidate((one, one, two, two)) for one, two in options]
        scored = searched.evaluate("scan", candidates)
        worth = [
            found.value + weight * (1 - count / N_VISION) for count, found in enumerate(scored)
        ]
        assert worth[step.count] >= max(worth) - 0.02
        assert 0 < step.count < most
    assert schedule.parameters["lambda"] == weight
    assert "tolerance" not in schedule.parameters


def test_bayes_is_told_nothing_good_of_a_count_that_was_given_up(make, monkeypatch):
    """On the items that it was stopped at it may have been right more often than the best is on all."""
    told = []

    class Recording(Proposer):
        def tell(self, points, values):
            told.append((round(points[0][0] * N_VISION), values[0]))
            super().tell(points, values)

    class EasyAtFirst:
        """All that keep fewer than half are stopped, right of all that they were asked."""

        geometry, n_vision = model().geometry, N_VISION

        def evaluate(self, stage, candidates, floor):
            (asked,) = candidates
            complete = asked.keep[-1] >= 0.5
            return [
                SimpleNamespace(value=0.6 if complete else 1.0, accuracy=0.6, complete=complete)
            ]

        def unreduced(self):
            return SimpleNamespace(value=0.6)

        progress = Progress()

    monkeypatch.setattr(g_search, "Proposer", Recording)
    settings = GSearch((2,), {}, 0.0, inner="bayes", weight=0.005)
    schedule, _ = search(EasyAtFirst(), settings, "g-search")
    given_up = [value for count, value in told if count < N_VISION / 2]
    assert given_up
    assert max(given_up) <= max(value for count, value in told if count >= N_VISION / 2)
    assert schedule.keep[-1] >= 0.5


def test_the_greater_lambda_the_fewer_tokens(make):
    searched = make()
    kept = []
    for weight in (0.0, 0.3, 10.0):
        settings = GSearch((2, 4), {}, 0.05, inner="bayes", weight=weight)
        kept.append(search(searched, settings, "g-search")[0].mean_keep)
    assert kept[0] > kept[1] > kept[2]
    assert kept[2] == 2 / LAYERS  # nothing is worth keeping


def test_a_stage_at_layer_0_takes_its_rule(make):
    searched = make()
    rules = {0: RankRule.parse("saliency"), 2: RankRule.parse("instruction-norope")}
    schedule, steps = search(searched, GSearch((0, 2, 4), rules, 0.4), "g-search")
    assert [step.layer for step in steps] == [0, 2, 4]
    assert schedule.cuts == (0, 2, 4)
    assert [str(rule) for rule in schedule.rules] == ["saliency", "instruction-norope", "last"]


def test_label_free_search_keeps_the_answers(make):
    searched = make(objective="label-free")
    schedule, steps = search(searched, GSearch(STARTS, {}, 0.02), "g-search")
    assert searched.unreduced().value == 0.0
    assert -0.02 <= steps[-1].value < 0
    assert schedule.mean_keep < 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"starts": ()}, r"stages begin at \[\]; give rising layer indices in 0\.\.5"),
        ({"starts": (3, 2)}, r"stages begin at \[3, 2\]"),
        ({"starts": (2, 2)}, r"stages begin at \[2, 2\]"),
        ({"starts": (2, 6)}, r"stages begin at \[2, 6\]"),
        ({"starts": (-1, 2)}, r"stages begin at \[-1, 2\]"),
        ({"starts": (0, 2)}, "a stage at layer 0 without a question-blind rule"),
        ({"starts": (1,), "rules": {1: RankRule.parse("last")}}, "a stage at layer 1 without"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"grain": 0}, "grain 0"),
    ],
)
def test_settings_are_refused_by_name(make, changes, reason):
    evaluator = model()
    settings = GSearch(**({"starts": STARTS, "rules": {}, "tolerance": 0.05} | changes))
    with pytest.raises(ConfigurationError, match=reason):
        search(make(evaluator=evaluator), settings, "g-search")
    assert not evaluator.tasks
