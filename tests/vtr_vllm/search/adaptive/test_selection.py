from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vtr_vllm.search.adaptive.selection import prices, select


def worth(predicted, costs, priced, chosen):
    values = [(predicted - price * costs)[:, list(chosen)].max(axis=1).mean() for price in priced]
    return float(np.mean(values))


@given(st.integers(0, 10_000), st.integers(2, 4))
@settings(max_examples=60)
def test_no_worse_than_greed_promises(seed, members):
    draw = np.random.default_rng(seed)
    predicted, costs = draw.random((20, 7)), draw.random(7)
    priced = prices(predicted, costs, draw.random(20), [0.3, 0.6])
    chosen = select(predicted, costs, priced, members)
    assert len(set(chosen)) == members
    assert [costs[index] for index in chosen] == sorted(costs[index] for index in chosen)
    cheapest = int(np.argmin(costs))
    assert cheapest in chosen
    alone = worth(predicted, costs, priced, [cheapest])
    best = max(
        worth(predicted, costs, priced, (cheapest, *others))
        for others in combinations(sorted({*range(7)} - {cheapest}), members - 1)
    )
    assert worth(predicted, costs, priced, chosen) - alone >= (1 - 1 / np.e) * (best - alone) - 1e-9


def test_prompts_that_need_another_schedule_get_it():
    predicted = np.array([[0.0, 1.0, 0.0, 0.9], [1.0, 0.0, 0.0, 0.9]] * 10)
    costs = np.array([0.2, 0.2, 0.1, 0.9])
    assert select(predicted, costs, [0.5], members=3) == [2, 0, 1]
