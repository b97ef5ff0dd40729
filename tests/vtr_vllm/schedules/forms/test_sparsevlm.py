import pytest

from tests.vtr_vllm.schedules.strategies import LLAVA_7B
from vtr_vllm.schedules.forms.sparsevlm import sparsevlm


def test_by_hand():
    """Of 32 layers 2 in full, 4 at r, 9 at r^2, 17 at r^3: with r = .5 that is 8.375."""
    schedule = sparsevlm(LLAVA_7B, 8.375 / 32)
    assert schedule.cuts == (2, 6, 15)
    assert [schedule.keep[cut] for cut in schedule.cuts] == pytest.approx([0.5, 0.25, 0.125])
    assert {str(rule) for rule in schedule.rules} == {"instruction+recycled"}
