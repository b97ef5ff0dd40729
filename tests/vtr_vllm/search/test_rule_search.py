from dataclasses import replace

import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.schedules import RankRule
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.rule_search import (
    ATTENTION_RULES,
    MOST_STAGES,
    guided_places,
    guided_starts,
    search_rules,
)

LAYERS, N_VISION = 8, 24
BLIND = (RankRule.parse("saliency"), RankRule.parse("cls"), RankRule.parse("random"))
PLACES = guided_places(LAYERS, BLIND)
TRIED = {*ATTENTION_RULES, *BLIND}
WITH_SALIENCY = guided_places(LAYERS, BLIND[:1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return items(tmp_path_factory.mktemp("rules"), 200)


@pytest.fixture(scope="module")
def table(data):
    return search_rules(study(model(poor=(3, 5)), data), "rules", (100, 200), PLACES)


def model(poor=()):
    return SimulatedEvaluator(LAYERS, (N_VISION,), poor=poor, has_cls=True)


def test_every_rule_is_tried_at_every_layer(table):
    assert list(table.values) == [0, 2, 3, 4, 5, 6, 7]
    assert set(table.values[0]) == {"saliency", "cls", "random"}
    for layer in range(2, LAYERS):
        assert set(table.values[layer]) == {str(rule) for rule in TRIED}


def test_the_right_rule_wins_at_each_layer(table):
    """Where attention ranks poorly, the simulated model ranks better without the question."""
    best = {layer: str(rule) for layer, rule in table.rules.items()}
    assert best.pop(0) == "cls"
    assert best.pop(3) == "cls"
    assert best.pop(5) == "cls"
    assert best[2] == best[4] == "instruction-norope"
    # at the last layers a cut harms little, and rules tie
    qualities = model()
    for layer in (6, 7):
        won = qualities.quality(table.rules[layer], layer)
        assert won >= qualities.quality(RankRule.parse("last"), layer)


class Confused(SimulatedEvaluator):
    """No rule ranks well before layers 3 and 5."""

    def quality(self, rule, layer):
        return super().quality(rule, layer) * (0.3 if layer in (3, 5) else 1.0)


def test_no_cut_where_ranking_is_worse_than_before(data):
    searched = study(Confused(LAYERS, (N_VISION,)), data)
    assert search_rules(searched, "rules", (100, 100), WITH_SALIENCY).cut_layers == (2, 4, 6, 7)


def test_layers_that_rank_well_are_all_kept(data):
    found = search_rules(study(model(), data), "rules", (100, 100), WITH_SALIENCY)
    assert found.cut_layers == tuple(range(2, LAYERS))
    assert str(found.rules[0]) == "saliency"


def test_a_value_is_the_mean_over_the_keep_rates(data):
    searched = study(model(), data)
    found = search_rules(searched, "rules", (100, 100), PLACES)
    unreduced = searched.unreduced(100).value
    for values in found.values.values():
        assert all(0 <= value <= unreduced for value in values.values())
    assert found.values[2]["instruction-norope"] > found.values[2]["random"]
    for layer, rule, rates in ((2, "last", (0.2, 0.07)), (0, "saliency", (0.5, 0.25))):
        cuts = [
            Candidate((1.0,) * layer + (rate,) * (LAYERS - layer), (RankRule.parse(rule),))
            for rate in rates
        ]
        direct = [each.value for each in searched.evaluate("check", cuts, 100)]
        assert direct[0] > direct[1]
        assert found.values[layer][rule] == pytest.approx(sum(direct) / 2)


def test_only_the_best_three_meet_all_items(data):
    searched = study(model(), data)
    searched.unreduced()
    search_rules(searched, "rules", (100, 200), PLACES)
    places = 3 + 6 * len(TRIED)  # layer 0 and layers 2 to 7
    finalists = 3 + 6 * 3
    heads = 6 * 3  # at each layer all of them, and without each
    assert searched.costs["rules"].evaluations == 2 * (places + finalists) + heads
    assert searched.costs["rules"].requests <= 100 * (2 * (places + finalists) + heads)


def test_heads_are_weighed_by_what_is_lost_without_them(table):
    """The simulated model's second head is worth nothing."""
    assert set(table.weighed) <= set(table.cut_layers)
    assert str(table.weighed[2]) == "instruction-norope:90"
    assert table.weighed[2] in table.rivals(2)


def test_one_head_is_not_weighed(data):
    alone = model()
    alone.geometry = replace(alone.geometry, heads=1)
    found = search_rules(study(alone, data), "rules", (100, 100), WITH_SALIENCY)
    assert found.weighed == {}


def test_rivals_are_the_best_three_and_the_best_of_each_kind(table):
    for layer in (0, 2, 3, 7):
        values = table.values[layer]
        rivals = [str(rule) for rule in table.rivals(layer)]
        assert rivals[0] == str(table.rules[layer])
        assert set(sorted(values, key=values.__getitem__, reverse=True)[:3]) <= set(rivals)
        assert len(rivals) == len(set(rivals)) <= 7
        for sees_question in {rule.sees_question for rule in PLACES[layer]}:
            own = {
                str(r): values[str(r)] for r in PLACES[layer] if r.sees_question == sees_question
            }
            assert max(own, key=own.__getitem__) in rivals


@pytest.mark.parametrize("layers", [1, 2, 3, 12, 13, 24, 30, 32, 80])
def test_deep_models_have_stages_of_several_layers(layers):
    starts = guided_starts(layers)
    assert list(starts) == sorted({*starts})
    assert len(starts) <= MOST_STAGES
    assert (starts[0] if starts else 2) == 2
    if layers <= MOST_STAGES + 2:
        assert starts == tuple(range(2, layers))
    else:
        assert len(starts) > MOST_STAGES // 2
