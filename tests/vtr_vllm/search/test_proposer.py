import math
import random
import warnings

import pytest

from vtr_vllm.search.proposer import Dimension, Proposer

DIMENSIONS = [Dimension("k", 0.1, 5.0, log=True), Dimension("alpha", 0.0, 12.0)]


def value(point):
    """Smooth, one optimum at k = 0.7, alpha = 5, where it is 1."""
    k, alpha = point
    return math.exp(-(math.log(k / 0.7) ** 2) - ((alpha - 5) / 4) ** 2)


def run(proposer, rounds, count=4):
    seen = []
    for _ in range(rounds):
        points = proposer.ask(count)
        proposer.tell(points, [value(point) for point in points])
        seen += points
    return seen


def test_same_seed_and_history_same_points():
    first, second, other = (run(Proposer(DIMENSIONS, seed), 4) for seed in (3, 3, 4))
    assert first == second
    assert not set(first) & set(other)


def test_another_history_other_points():
    one, other = Proposer(DIMENSIONS, 0), Proposer(DIMENSIONS, 0)
    assert run(one, 2) == run(other, 2)  # eight quasi-random points
    assert one.ask(1) == other.ask(1)
    one.tell([(0.2, 1.0)], [2.0])
    other.tell([(4.0, 11.0)], [2.0])
    assert one.ask(1) != other.ask(1)


def test_first_points_take_the_place_of_as_many_quasi_random_ones():
    """Behind them come those that come without them; what was told chooses from the ninth on."""
    first = [(0.5, 3.0), (5.0, 0.0), (1.0, 4.0)]
    plain, one, other = (Proposer(DIMENSIONS, 0, first=f) for f in ((), first, first))
    expected = run(plain, 8, count=1)[3:]
    for proposer, worth in ((one, 0.0), (other, 1.0)):
        for number in range(8):
            (point,) = proposer.ask(1)
            assert point == (first[number] if number < 3 else expected[number - 3])
            proposer.tell([point], [worth * value(point)])
    assert one.ask(1) != other.ask(1)


def test_first_points_come_first_and_within_bounds():
    proposer = Proposer(DIMENSIONS, 0, first=[(0.5, 3.0), (99.0, -1.0), (1.0, 4.0)])
    assert proposer.ask(2) == [(0.5, 3.0), (5.0, 0.0)]
    (third, fourth) = proposer.ask(2)
    assert third == (1.0, 4.0)
    assert fourth not in [(0.5, 3.0), (5.0, 0.0), third]


def test_points_asked_together_differ_and_lie_in_bounds():
    proposer = Proposer(DIMENSIONS, 0)
    for _ in range(5):
        points = proposer.ask(4)
        assert len(set(points)) == 4
        for k, alpha in points:
            assert 0.1 <= k <= 5.0
            assert 0.0 <= alpha <= 12.0
        proposer.tell(points, [value(point) for point in points])


@pytest.mark.parametrize("seed", range(3))
def test_it_comes_closer_to_the_optimum_than_random_points(seed):
    searched = max(value(point) for point in run(Proposer(DIMENSIONS, seed), 8))
    draw = random.Random(seed)
    drawn = max(
        value((math.exp(draw.uniform(math.log(0.1), math.log(5.0))), draw.uniform(0, 12)))
        for _ in range(200)
    )
    assert searched > 0.99
    assert searched > drawn


def test_a_larger_value_draws_points_near():
    proposer = Proposer(DIMENSIONS, 0)
    late = run(proposer, 10)[-12:]
    near = sum(value(point) > 0.8 for point in late)
    early = sum(value(point) > 0.8 for point in run(Proposer(DIMENSIONS, 0), 2))
    assert near > early


def test_names_of_a_point():
    assert Proposer(DIMENSIONS, 0).named((0.5, 2.0)) == {"k": 0.5, "alpha": 2.0}


def test_no_warning_is_let_through():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proposer = Proposer(DIMENSIONS, 0, first=[(0.5, 3.0)])
        points = proposer.ask(4)
        proposer.tell(points * 2, [1.0] * 8)  # the same points twice
        proposer.ask(8)
