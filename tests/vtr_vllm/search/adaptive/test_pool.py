from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.schedules import RankRule, explicit
from vtr_vllm.search.adaptive.pool import pool
from vtr_vllm.search.candidates import Candidate


def test_what_was_searched_is_there_but_for_rules_of_one_image(tmp_path):
    searching = study(SimulatedEvaluator(6, (16,)), items(tmp_path, 100))
    rates = (0.5, 0.5, 0.5, 0.5, 0.25, 0.25)
    blind, alone = (
        explicit(searching.geometry, rates, [RankRule.parse(rule) for rule in ("diverse", rule)])
        for rule in ("grid", "self")
    )
    found = pool(searching, [blind, alone], [0.5])
    assert Candidate.of(blind, 16) in found
    assert not any(rule.of_one_image for candidate in found for rule in candidate.rules)
    assert len(set(found)) == len(found)
