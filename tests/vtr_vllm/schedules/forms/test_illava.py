import pytest

from tests.vtr_vllm.schedules.strategies import LLAVA_7B
from vtr_vllm.schedules.forms.illava import illava


def test_by_hand():
    """Of 32 layers 8 in full and 24 at .7: the paper's setting."""
    schedule = illava(LLAVA_7B, (8 + 24 * 0.7) / 32)
    assert schedule.cuts == (8,)
    assert schedule.keep[8] == pytest.approx(0.7)
    assert str(schedule.rules[0]) == "last+tail"


def test_a_budget_below_a_quarter_cuts_earlier():
    schedule = illava(LLAVA_7B, 0.2)
    assert schedule.cuts == (6,)
    assert schedule.mean_keep == pytest.approx(0.2)
