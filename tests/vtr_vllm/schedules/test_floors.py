"""What each image keeps for sure."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtr_vllm.errors import ScheduleError
from vtr_vllm.schedules import check_floor, image_floors

sizes_ = st.lists(st.integers(0, 3000), min_size=1, max_size=8)
floors_ = st.floats(0, 1) | st.sampled_from([0, 1, 0.1, 0.3, 0.5, 5e-324])


@given(floors_, sizes_, st.data())
@settings(deadline=None)
def test_floors_can_always_be_met(floor, sizes, data):
    kept = data.draw(st.integers(0, sum(sizes)))
    floors = image_floors(floor, kept, sizes)
    assert sum(floors) <= kept
    assert all(0 <= own <= size for own, size in zip(floors, sizes, strict=True))
    images = sum(size > 0 for size in sizes)
    present = [own > 0 for own, size in zip(floors, sizes, strict=True) if size]
    assert all(present) if floor > 0 and kept >= images else not any(present)


@given(floors_, floors_, sizes_, st.data())
@settings(deadline=None)
def test_fewer_kept_or_a_lower_floor_never_raises_one(floor, other, sizes, data):
    """So floors nest from cut to cut: what an earlier cut left is enough for every later one."""
    inside = st.integers(0, sum(sizes))
    less, more = sorted(data.draw(st.tuples(inside, inside)))
    low, high = sorted((floor, other))
    most = image_floors(high, more, sizes)
    for fewer in (image_floors(high, less, sizes), image_floors(low, more, sizes)):
        assert all(own <= bound for own, bound in zip(fewer, most, strict=True))


@given(sizes_)
@settings(deadline=None)
def test_keeping_all_at_floor_one_keeps_every_image_whole(sizes):
    assert image_floors(1.0, sum(sizes), sizes) == tuple(sizes)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), st.data())
@settings(deadline=None)
def test_floor_one_is_the_proportional_share_to_a_token(sizes, data):
    """Of what remains once every image has one token, and rounded down."""
    images, total = len(sizes), sum(sizes)
    kept = data.draw(st.integers(images, total))
    for size, own in zip(sizes, image_floors(1, kept, sizes), strict=True):
        share = 1 + (kept - images) * (size - 1) / max(total - images, 1)
        assert share - 1 - 1e-9 < own <= share + 1e-9


@pytest.mark.parametrize(
    ("floor", "kept", "sizes", "floors"),
    [
        (0, 100, (64, 64), (0, 0)),
        (1, 64, (64, 64), (32, 32)),
        (0.5, 66, (64, 64), (17, 17)),
        (0.5, 2, (64, 64), (1, 1)),
        (0.5, 1, (64, 64), (0, 0)),
        (1e-9, 60, (64, 64), (1, 1)),
        (1, 3, (1, 1, 1), (1, 1, 1)),
        (1, 20, (1, 100), (1, 19)),
        (0.5, 20, (8, 0, 32), (2, 0, 8)),
        (0.3, 22, (51, 51), (4, 4)),  # 0.3 of 10 is 3, although the float 0.3 is less than that
    ],
)
def test_examples(floor, kept, sizes, floors):
    assert image_floors(floor, kept, sizes) == floors


@pytest.mark.parametrize("value", [0, 1, 0.25, -0.0])
def test_a_floor_is_a_float_between_0_and_1(value):
    assert check_floor(value) == value
    assert math.copysign(1, check_floor(value)) == 1
    assert isinstance(check_floor(value), float)


@pytest.mark.parametrize("value", [-0.1, 1.1, True, None, "0.5", math.nan, math.inf, [0.5]])
def test_any_other_floor_is_refused(value):
    with pytest.raises(ScheduleError, match=r"per_image_floor is .* in \[0, 1\]"):
        check_floor(value)
