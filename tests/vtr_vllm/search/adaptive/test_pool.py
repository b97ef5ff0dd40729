import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.schedules import RankRule, explicit
from vtr_vllm.search.adaptive.pool import movable, pool
from vtr_vllm.search.candidates import Candidate


@pytest.fixture
def searching(tmp_path):
    return study(SimulatedEvaluator(6, (16,)), items(tmp_path, 100))


def two_cuts(searching, second):
    rules = [RankRule.parse(rule) for rule in ("diverse", second)]
    return explicit(searching.geometry, (0.5, 0.5, 0.5, 0.5, 0.25, 0.25), rules)


def test_what_was_made_is_there_but_for_rules_of_one_image_and_of_unknown_cost(searching):
    blind, alone, unknown = (two_cuts(searching, rule) for rule in ("grid", "self", "last@0.5"))
    found = pool(searching, [blind, alone, unknown], [0.5])
    assert Candidate.of(blind, 16) in found
    assert not any(rule.is_adaptive for candidate in found for rule in candidate.rules)
    assert not any(rule.of_one_image for candidate in found for rule in candidate.rules)
    assert len(set(found)) == len(found)


def test_what_was_made_is_all_where_nothing_else_is_wanted(searching):
    blind, alone = (two_cuts(searching, rule) for rule in ("grid", "self"))
    full = explicit(searching.geometry, (1.0,) * 6, ())
    assert movable(searching, [blind, blind, alone, full]) == [Candidate.of(blind, 16)]
