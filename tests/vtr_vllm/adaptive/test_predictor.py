import json

import numpy as np
import pytest

from vtr_vllm.adaptive import Predictor
from vtr_vllm.errors import ScheduleError

PREDICTOR = Predictor((3, 4096), np.array([[1.0, -2.0], [0.5, 0.0]]), np.array([0.0, 1.0]))


def test_by_hand():
    sigmoid = lambda logit: 1 / (1 + np.exp(-logit))  # noqa: E731
    assert PREDICTOR.predict({3: 2.0, 5: 9.0}) == pytest.approx((sigmoid(2), sigmoid(-3)))
    assert PREDICTOR.predict({}) == pytest.approx((0.5, sigmoid(1)))


def test_no_logit_overflows():
    huge = Predictor((0,), np.array([[1e6, -1e6]]), np.zeros(2))
    assert huge.predict({0: 1e6}) == (1.0, 0.0)


def test_plain_numbers_and_back():
    again = Predictor.from_dict(json.loads(json.dumps(PREDICTOR.to_dict())))
    assert again.predict({3: 0.3, 4096: 1.5}) == PREDICTOR.predict({3: 0.3, 4096: 1.5})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"places": [4096, 3]}, "must rise"),
        ({"places": [3, 4099]}, "must rise in 0..4098"),
        ({"places": [3, True]}, "whole numbers"),
        ({"places": [3]}, "fit it again"),
        ({"weights": [[1.0, "x"], [0.0, 0.0]]}, "must hold numbers"),
        ({"weights": [[1.0], [0.0, 0.0]]}, "must hold numbers"),
        ({"weights": [[1e999, 0.0], [0.0, 0.0]]}, "no finite number"),
        ({"weights": 3}, "must hold numbers"),
        ({"bias": [[0.0, 1.0]]}, "1 dimensions"),
        ({"bias": []}, "fit it again"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, said):
    with pytest.raises(ScheduleError, match=said):
        Predictor.from_dict(PREDICTOR.to_dict() | change)
