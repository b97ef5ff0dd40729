"""What a candidate can still reach."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.vtr_vllm.search.test_study import WHOLE, objectives
from vtr_vllm.search.evaluation import Evaluation
from vtr_vllm.search.outcomes import Outcome

RIGHT, WRONG = Outcome(1.0, 0.0, 0.0), Outcome(0.0, -10.0, math.log(2))

ALONE = tuple(range(400))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-10, 0), st.floats(0, math.log(2))), min_size=1),
    st.integers(0, 40),
    objectives,
)
def test_what_is_possible_bounds_what_comes(found, perfect, objective):
    """Bit for bit: rounding must not give up a candidate whose every further item is perfect."""
    outcomes = tuple(Outcome(*values) for values in found)
    asked = len(outcomes) + perfect
    alone = tuple(range(asked))
    begun = Evaluation(WHOLE, outcomes, asked, objective, alone)
    best = (RIGHT,) * perfect
    assert (
        begun.highest_possible >= Evaluation(WHOLE, outcomes + best, asked, objective, alone).value
    )


def test_one_that_is_wrong_where_the_unreduced_model_is_right_is_given_up_early():
    """Of 400 items the model gets 240: after 100 of them 160 more could be right, and will not be."""
    full = [RIGHT if n % 5 < 3 else WRONG for n in range(400)]
    begun = Evaluation(
        WHOLE, tuple(full[n] if n % 2 else WRONG for n in range(100)), 400, "accuracy", ALONE
    )
    floor = Evaluation(WHOLE, tuple(full), 400, "accuracy", ALONE).value - 0.01
    assert begun.highest_possible >= floor > begun.highest(full)


def test_without_the_unreduced_model_or_with_few_items_only_what_is_possible_counts():
    begun = Evaluation(WHOLE, (WRONG,) * 40, 400, "accuracy", ALONE)
    assert begun.highest([RIGHT] * 400) == begun.highest_possible
    begun = Evaluation(WHOLE, (WRONG,) * 100, 400, "accuracy", ALONE)
    assert begun.highest([]) == begun.highest_possible > begun.highest([RIGHT] * 400)
    of_33_images = tuple(index // 3 for index in range(400))
    begun = Evaluation(WHOLE, (WRONG,) * 100, 400, "accuracy", of_33_images)
    assert begun.highest([RIGHT] * 400) == begun.highest_possible
    whole = Evaluation(WHOLE, (RIGHT,) * 100, 100, "accuracy", ALONE)
    assert whole.highest([WRONG] * 100) == whole.value
