import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import curves
from vtr_vllm.errors import InvalidBudget, ScheduleError
from vtr_vllm.schedules.keep_rates import (
    check_budget,
    check_keep_and_rules,
    cut_layers,
    keep_counts,
    mean,
)


@pytest.mark.parametrize("value", [1, 1.0, 0.5, 1e-9, 5e-324])
def test_budget_is_a_number_above_0_up_to_1(value):
    budget = check_budget(value)
    assert isinstance(budget, float)
    assert budget == value


@pytest.mark.parametrize(
    "value",
    [
        *[0, 0.0, -0.5, 1.0000001, 2, math.nan, math.inf, -math.inf, 10**400, 1j],
        *[True, False, "0.5", "x" * 10**5, None, [0.5], {"budget": 0.5}],
    ],
)
def test_any_other_budget_is_refused(value):
    with pytest.raises(InvalidBudget, match=r"\(0, 1\]") as caught:
        check_budget(value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("keep", "n_vision", "counts"),
    [
        ((1.0, 0.5, 0.5, 0.0), 5, (5, 3, 3, 0)),  # 2.5 goes up
        ((1.0, 0.25), 10, (10, 3)),  # 2.5 as well: half up, not to even
        ((0.05,), 9, (0,)),  # a rate above 0 may keep nothing
        ((0.49999999999999994,), 1, (0,)),  # adding .5 first would make it 1
        ((1.0, 0.3), 0, (0, 0)),
        ((1 - 2**-53,), 576, (576,)),
    ],
)
def test_counts_round_half_up(keep, n_vision, counts):
    assert keep_counts(keep, n_vision) == counts


@given(curves(12), st.integers(0, 20_000))
@settings(deadline=None)
def test_counts_never_rise_and_stay_in_range(curve, n_vision):
    keep, _ = curve
    counts = keep_counts(keep, n_vision)
    assert list(counts) == sorted(counts, reverse=True)
    assert all(0 <= count <= n_vision for count in counts)
    assert all(count == n_vision for rate, count in zip(keep, counts, strict=True) if rate == 1)
    assert all(
        abs(count - rate * n_vision) <= 0.5 for rate, count in zip(keep, counts, strict=True)
    )
    assert len(set(counts)) <= len(set(keep))


@pytest.mark.parametrize("n_vision", [-1, True, 2.0, "3", None])
def test_counts_of_no_whole_number_are_refused(n_vision):
    with pytest.raises(ValueError, match="n_vision"):
        keep_counts((1.0,), n_vision)


def test_cuts_are_where_a_value_falls():
    assert cut_layers([1.0, 1.0, 0.5, 0.5, 0.0], 1.0) == (2, 4)
    assert cut_layers([0.5, 0.5], 1.0) == (0,)
    assert cut_layers([7, 7, 3], 7) == (2,)


def test_mean_does_not_drift():
    assert mean([0.1] * 10) == 0.1


@given(curves(9))
@settings(deadline=None, max_examples=50)
def test_valid_curves_pass_unchanged(curve):
    keep, rules = curve
    assert check_keep_and_rules(keep, rules, 9) == (keep, rules)
    assert check_keep_and_rules(list(keep), [str(rule) for rule in rules], 9) == (keep, rules)


@pytest.mark.parametrize(
    ("keep", "rules", "reason"),
    [
        ("1111", [], "list of 4 keep rates"),
        (None, [], "list of 4 keep rates"),
        ([1, 1, 1], [], "3 rates, the model has 4 layers"),
        ([1, 1, "0.5", 0.5], ["last"], r"keep\[2\] is '0.5'"),
        ([1, 1, True, 1], [], r"keep\[2\] is True"),
        ([1, 1, math.nan, 1], [], r"keep\[2\] is nan"),
        ([1, 1, -0.1, -0.1], ["last"], r"keep\[2\] is -0.1"),
        ([1.1, 1, 1, 1], [], r"keep\[0\] is 1.1"),
        ([10**400, 1, 1, 1], [], r"keep\[0\] is 1000"),
        ([1, 0.5, 0.6, 0.5], ["random"], r"keep\[2\] is 0.6, above keep\[1\] = 0.5"),
        ([1, 1, 0.5, 0.5], [], "0 rank rules for 1 cuts"),
        ([1, 1, 0.5, 0.5], ["last", "last"], "2 rank rules for 1 cuts"),
        ([1, 1, 0.5, 0.5], "last", "rules must be a list"),
        ([1, 1, 0.5, 0.5], ["first"], "rank rule 'first' is unknown"),
        ([1, 0.5, 0.5, 0.5], ["last"], "layer 1 is ranked by last"),
        ([0, 0, 0, 0], ["instruction"], "layer 0 is ranked by instruction"),
        ([1, 1, 0.5, 0.5], ["previous"], "no order to reuse"),
    ],
)
def test_malformed_curves_are_refused(keep, rules, reason):
    with pytest.raises(ScheduleError, match=reason):
        check_keep_and_rules(keep, rules, 4)
