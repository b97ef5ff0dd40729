"""Counts of instances as schedules."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.training.atp.distil import RULE, distil

GEOMETRY = ModelGeometry(6, 128, 320, 2, 2, 64)


def test_each_group_of_like_counts_is_a_schedule_of_their_mean() -> None:
    counts = [(2, 0), (10, 8), (4, 0), (12, 8), (11, 8)]
    dear, cheap = distil(counts, 2, (2, 4), GEOMETRY, 16, {"target": 0.25})
    assert dear.counts(16) == (16, 16, 11, 11, 8, 8)
    assert cheap.counts(16) == (16, 16, 3, 3, 0, 0)
    assert (dear.name, cheap.name) == ("atp-1", "atp-2")
    assert dear.rules == cheap.rules == (RULE, RULE)
    assert dear.provenance == {"target": 0.25}


def test_groups_are_of_like_cost_and_not_of_like_counts() -> None:
    """A token behind the last cut is in four layers, one before it in a single one."""
    counts = [(16, 2), (6, 2), (16, 6), (6, 6)]
    dear, cheap = distil(counts, 2, (1 + 1, 3), GEOMETRY, 16, {})
    assert dear.counts(16)[2:4] == (11, 6)
    assert cheap.counts(16)[2:4] == (11, 2)


@given(
    counts=st.lists(
        st.tuples(*[st.integers(0, 16)] * 3).map(lambda own: tuple(sorted(own, reverse=True))),
        min_size=4,
        max_size=40,
    ),
    members=st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_schedules_fall_in_cost_and_are_within_what_was_decided(
    counts: list[tuple[int, ...]], members: int
) -> None:
    found = distil(counts, members, (2, 4, 5), GEOMETRY, 16, {})
    assert 1 <= len(found) <= members
    keeps = [schedule.mean_keep for schedule in found]
    assert all(high >= low for high, low in pairwise(keeps))
    governed = np.array([2, 1, 1])
    asked = (np.array(counts) @ governed + 2 * 16) / (6 * 16)
    assert asked.min() - 0.02 <= keeps[-1] <= keeps[0] <= asked.max() + 0.02


def test_fewer_items_than_schedules_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="1 items are fewer than 2 schedules"):
        distil([(2, 0)], 2, (2, 4), GEOMETRY, 16, {})
