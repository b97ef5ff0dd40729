import json

import numpy as np
import pytest

from tests.vtr_vllm.adaptive.families import EASY, GEOMETRY, HARD, family, prompt
from vtr_vllm.adaptive import Prices, ScheduleFamily
from vtr_vllm.errors import GeometryMismatch, InvalidBudget, ScheduleError
from vtr_vllm.schedules import ModelGeometry

COSTS = [0.125, 0.375, 0.75]


def test_a_prompt_gets_the_schedule_that_it_needs():
    found = family()
    assert found.costs.tolist() == COSTS
    easy, hard = (found.choose(prompt(word), 0.45) for word in (EASY, HARD))
    assert (easy.schedule.name, hard.schedule.name) == ("family-1", "family-3")
    assert easy.probability > 0.9
    assert hard.promised == easy.promised == pytest.approx((0.125 + 0.75) / 2)


@pytest.mark.parametrize("budget", [0.15, 0.2, 0.3, 0.4])
def test_the_budget_is_the_mean_over_prompts(budget):
    found = family(prompts=400)
    prompts = [prompt(HARD if n % 2 else EASY, n) for n in range(400)]
    chosen = [found.choose(each, budget) for each in prompts]
    spent = np.mean([each.schedule.mean_keep for each in chosen])
    assert spent == pytest.approx(budget, abs=0.75 / 400)
    assert chosen[0].promised == pytest.approx(budget, abs=0.75 / 400)


def test_bounds_hold_for_each_request_by_itself():
    found = family()
    assert found.choose(prompt(HARD), 0.45, maximum=0.5).schedule.mean_keep <= 0.5
    assert found.choose(prompt(EASY), 0.45, minimum=0.2).schedule.name == "family-2"


def test_what_is_expected_is_the_mean_over_calibration_and_not_this_prompt_s():
    found = family()
    known = found.calibration
    prices = Prices(known.predictions, found.costs, known.draws)
    promised, expected = prices.reached(prices.of(0.125))
    assert expected == pytest.approx(known.predictions[:, 0].mean())
    hard, easy = (found.choose(prompt(word), 0.125) for word in (HARD, EASY))
    assert hard.probability < 0.1 < 0.4 < expected < 0.6 < 0.9 < easy.probability
    assert (hard.expected, hard.promised) == (easy.expected, easy.promised) == (expected, promised)


def test_an_unsure_choice_takes_the_larger_schedule():
    found = family()
    assert found.choose(prompt(HARD), 0.125).schedule.name == "family-1"
    assert found.choose(prompt(HARD), 0.125, confidence=0.5).schedule.name == "family-3"
    assert found.choose(prompt(EASY), 0.125, confidence=0.99).schedule.name == "family-3"


@pytest.mark.parametrize("bounds", [{"budget": 0.1}, {"budget": 0.5, "minimum": 0.8}])
def test_what_cannot_be_met_is_refused(bounds):
    with pytest.raises(InvalidBudget, match=r"whose schedules keep 0.125, 0.375, 0.75"):
        family().choose(prompt(EASY), **bounds)


def test_a_file_and_back(tmp_path):
    found = family()
    found.save(tmp_path / "adaptive" / "family.json")
    again = ScheduleFamily.load(tmp_path / "adaptive" / "family.json")
    assert again.describe() == found.describe()
    for word in (EASY, HARD):
        assert again.choose(prompt(word), 0.3).schedule == found.choose(prompt(word), 0.3).schedule
    assert again.to_json() == ScheduleFamily.from_json(again.to_json()).to_json()


def test_another_model_is_refused():
    other = ModelGeometry(
        layers=4, hidden_size=8, intermediate_size=99, heads=2, kv_heads=1, head_dim=4
    )
    with pytest.raises(GeometryMismatch):
        family().check_fits(other)
    family().check_fits(GEOMETRY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "this release reads 1"),
        ({"members": []}, "must rise"),
        ({"members": "x"}, "must be a list"),
        ({"name": ""}, "1 to 96"),
        ({"calibration": {"predictions": [[0.5]], "draws": [0.5]}}, "search it again"),
        ({"calibration": {"predictions": [], "draws": []}}, "search it again"),
        ({"extra": 1}, "unknown"),
        ({"predictor": None}, "must be an object"),
    ],
)
def test_a_broken_file_says_why(tmp_path, change, said):
    path = tmp_path / "family.json"
    path.write_text(json.dumps(json.loads(family().to_json()) | change))
    with pytest.raises(ScheduleError, match=said) as raised:
        ScheduleFamily.load(path)
    assert str(path) in str(raised.value)


def test_members_in_another_order_are_refused():
    values = json.loads(family().to_json())
    values["members"].reverse()
    with pytest.raises(ScheduleError, match="must rise"):
        ScheduleFamily.from_json(json.dumps(values))


def test_nothing_but_a_schedule_error_leaves_a_file(tmp_path):
    for content in (b"", b"\xff", b"[]", b"{", b"null"):
        path = tmp_path / "family.json"
        path.write_bytes(content)
        with pytest.raises(ScheduleError):
            ScheduleFamily.load(path)
    with pytest.raises(ScheduleError, match="cannot read it"):
        ScheduleFamily.load(tmp_path / "none.json")


def test_the_price_of_a_budget_is_found_once():
    found = family(prompts=2000)
    for word in (EASY, HARD):
        found.choose(prompt(word), 0.3)
    assert found._terms.cache_info().misses == 1
