import pytest

from tests.vtr_vllm.schedules.strategies import LLAVA_7B
from vtr_vllm.schedules.forms.feather import feather


@pytest.mark.parametrize(
    ("budget", "cuts", "rate"),
    [
        (0.37, (8, 16), 0.3),  # the paper's setting: 8 + 8 * .3 + 16 * .09 of 32 layers
        (0.4375, (8, 16), 0.4114),  # 16 r^2 + 8 r = 6
        (0.2, (3, 6), 0.3085),  # moved towards the input: 26 r^2 + 3 r = 3.4
        (0.065, (2, 3), 0.0380),  # as early as they may be: 29 r^2 + r = .08
    ],
)
def test_by_hand(budget, cuts, rate):
    schedule = feather(LLAVA_7B, budget)
    assert schedule.cuts == cuts
    assert schedule.keep[cuts[0]] == pytest.approx(rate, abs=1e-3)
    assert schedule.keep[-1] == pytest.approx(schedule.keep[cuts[0]] ** 2)
    assert {str(rule) for rule in schedule.rules} == {"last-norope"}
