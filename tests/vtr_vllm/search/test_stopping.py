"""A candidate is given up when it will hardly pass, and seldom when it would have."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_vllm.search.stopping import likely_highest

scores = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=80)


@given(scores, st.data())
def test_the_bound_closes_in_on_the_mean(full: list[float], data: st.DataObject) -> None:
    """With every item seen it is the mean itself; before, it is above what the items so far promise."""
    values = data.draw(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(full), max_size=len(full))
    )
    mean = sum(values) / len(values)
    alone = range(len(full))
    assert likely_highest(values, full, alone, 1.1) == pytest.approx(mean, abs=1e-9)
    seen = data.draw(st.integers(1, len(full) - 1))
    promised = sum(full) / len(full) + sum(values[:seen]) / seen - sum(full[:seen]) / seen
    bound = likely_highest(values[:seen], full, alone, 1.1)
    assert bound > promised
    # five questions about each image that are right or wrong together tell no more than one
    five = [each for each in full for _ in range(5)]
    shown = [each for each in values[:seen] for _ in range(5)]
    groups = [index // 5 for index in range(len(five))]
    assert likely_highest(shown, five, groups, 1.1) == pytest.approx(bound)
    assert likely_highest(shown, five, range(len(five)), 1.1) < bound


def bound(values: list[float], full: list[float]) -> float:
    return likely_highest(values, full, range(len(full)), 1.1)


@pytest.mark.parametrize("base", [0.6, 0.95])
@pytest.mark.parametrize("loss", [0.0, 0.02, 0.1, 0.3])
def test_who_is_given_up(base: float, loss: float) -> None:
    """Of a model that is right ``base`` of the time, 1,200 items, a tolerance of a point.

    A candidate that answers as many is hardly ever given up, one that loses a third after a block.
    """
    dice, items, kept, lost = random.Random(f"{base} {loss}"), 1200, [], 0
    for _ in range(200):
        full = [float(dice.random() < base) for _ in range(items)]
        drawn = [float(dice.random() < base) if dice.random() < 0.08 else each for each in full]
        values = [0.0 if each and dice.random() < loss / base else each for each in drawn]
        floor = math.fsum(full) / items - 0.01
        passes = math.fsum(values) / items >= floor
        seen = next(
            (n for n in range(100, items, 100) if bound(values[:n], full) < floor),
            items,
        )
        kept.append(seen / items)
        lost += passes and seen < items
    assert lost <= 2
    share = sum(kept) / len(kept)
    if loss == 0.0:
        assert share > 0.85
    if loss >= 0.1:
        assert share < {0.1: 0.35, 0.3: 0.1}[loss]
