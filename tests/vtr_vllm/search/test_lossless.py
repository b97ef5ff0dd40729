import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.schedules import RankRule, Schedule, explicit, full, interpolate
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.lossless import search_lossless

LAYERS, N_VISION = 6, 16
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def searching(tmp_path_factory):
    data = items(tmp_path_factory.mktemp("lossless"), 200)
    return study(SimulatedEvaluator(LAYERS, (N_VISION,)), data)


def cut(searching, layer: int, budget: float | None = None, keep: float = 0.0) -> Schedule:
    """Every token before ``layer``, a share of ``keep`` from there on."""
    rates = (1.0,) * layer + (keep,) * (LAYERS - layer)
    made = explicit(searching.geometry, rates, [RankRule.parse("last")])
    return Schedule(f"cut-{layer}", made.geometry, made.keep, made.rules, "explicit", budget=budget)


def within(searching, schedule: Schedule) -> bool:
    (found,) = searching.evaluate("check", [Candidate.of(schedule, N_VISION)])
    return found.value >= searching.unreduced().value - TOLERANCE


def test_what_g_search_found_is_taken_where_it_keeps_less_and_loses_nothing(searching):
    """The budgets' own schedules cut early, at a layer that needs its tokens."""
    curve = [cut(searching, 5, 0.9, keep=0.4), cut(searching, 3, 0.5)]
    assert not within(searching, curve[1])
    alone = search_lossless(searching, "lossless", curve, curve[0], TOLERANCE)
    rates = (1.0, 1.0, 0.8, 0.5, 0.3, 0.2)
    greedy = explicit(searching.geometry, rates, [RankRule.parse("instruction-norope")] * 4)
    assert within(searching, greedy)
    assert greedy.mean_keep < alone.mean_keep
    found = search_lossless(searching, "lossless", curve, greedy, TOLERANCE)
    assert (found.keep, found.name, found.budget) == (greedy.keep, "lossless", None)
    assert found.parameters["curve"] == greedy.name


def test_one_that_loses_is_not_taken(searching):
    curve = [cut(searching, 5, 0.9, keep=0.4)]
    lossy = cut(searching, 2)
    found = search_lossless(searching, "lossless", curve, lossy, TOLERANCE)
    assert found.mean_keep > lossy.mean_keep


def test_the_curve_is_followed_as_far_as_it_loses_nothing(searching):
    """To within what five halvings tell, in whichever order the schedules come."""
    passing, failing = cut(searching, 5, 0.9, keep=0.4), cut(searching, 2, 1 / 3)
    assert within(searching, passing)
    assert not within(searching, failing)
    whole = full(searching.geometry)
    found = search_lossless(searching, "lossless", [passing, failing], whole, TOLERANCE)
    assert within(searching, found)
    assert failing.mean_keep < found.mean_keep < passing.mean_keep
    step = (passing.mean_keep - failing.mean_keep) / 2**5
    assert not within(searching, interpolate(failing, passing, found.mean_keep - step))
    again = search_lossless(searching, "lossless", [failing, passing], whole, TOLERANCE)
    assert again == found
