import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vtr_vllm.adaptive import Price, Prices, pick
from vtr_vllm.adaptive.price import picks

unit = st.floats(0, 1, width=32)


@st.composite
def problems(draw):
    prompts, members = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    costs = draw(st.lists(unit, min_size=members, max_size=members, unique=True))
    return (
        draw(arrays(np.float64, (prompts, members), elements=unit)),
        np.sort(np.array(costs)),
        draw(arrays(np.float64, prompts, elements=st.floats(0, 1, exclude_max=True), unique=True)),
        draw(unit),
    )


def test_by_hand():
    assert pick([0.5, 0.9], [0.1, 0.5], price=0.5) == 1  # .45 against .65
    assert pick([0.5, 0.9], [0.1, 0.5], price=1.5) == 0  # .35 against .15
    assert pick([0.7, 0.7], [0.1, 0.5], price=0.0) == 0  # of equals the cheaper
    assert pick([0.5, 0.9], [0.1, 0.5], price=1.5, confidence=0.6) == 1
    assert pick([0.5, 0.4], [0.1, 0.5], price=1.5, confidence=0.6) == 1  # none is: the dearest


@given(problems())
@settings(max_examples=200)
def test_the_mean_meets_the_budget_and_comes_as_near_as_one_prompt(problem):
    predicted, costs, draws, budget = problem
    prices = Prices(predicted, costs, draws)
    price = prices.of(budget)
    mean, _ = prices.reached(price)
    if budget >= costs[0]:
        assert mean <= budget + 1e-9
    free, _ = prices.reached(Price(0.0, 0.0, 1.0))
    if free <= budget:
        assert mean == free  # nothing has to be saved
    elif budget >= costs[0] and price.low > 0:
        # one prompt more at the lower price would be too much
        later = draws[draws >= price.share]
        if len(later):
            more = Price(price.low, price.high, np.nextafter(later.min(), 1))
            assert prices.reached(more)[0] > budget or np.allclose(prices.reached(more)[0], mean)


@given(problems(), unit)
def test_one_prompt_and_many_choose_alike(problem, confidence):
    predicted, costs, draws, budget = problem
    price = Prices(predicted, costs, draws, confidence).of(budget)
    paid = np.array([price.of(draw) for draw in draws])
    together = picks(predicted, costs, paid, confidence)
    alone = [pick(row, costs, own, confidence) for row, own in zip(predicted, paid, strict=True)]
    assert together.tolist() == alone


@given(problems())
def test_a_larger_budget_never_costs_probability(problem):
    predicted, costs, draws, budget = problem

    prices = Prices(predicted, costs, draws)
    (_, less), (_, more) = (
        prices.reached(prices.of(allowed)) for allowed in (budget, min(1.0, budget + 0.2))
    )
    assert more >= less - 1e-6


@given(problems(), unit)
def test_the_price_is_the_lowest_that_will_do(problem, confidence):
    predicted, costs, draws, budget = problem
    prices = Prices(predicted, costs, draws, confidence)
    price = prices.of(budget)
    mean, _ = prices.reached(price)
    for share in np.linspace(0, 1, 50, endpoint=False):
        less = Price(price.low * share, price.low * share, 1.0)
        assert prices.reached(less)[0] >= min(mean, budget) - 1e-9
