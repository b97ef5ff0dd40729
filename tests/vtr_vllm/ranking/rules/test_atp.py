"""What trained modules are shown, and what their decision is to a schedule."""

from __future__ import annotations

import pytest

from vtr_vllm.errors import ScheduleError
from vtr_vllm.ranking import Need, RankRule
from vtr_vllm.ranking.rules.atp import Atp


def test_it_decides_how_many_stay_unless_they_are_fixed():
    rule = RankRule.parse("atp")
    assert rule.is_adaptive
    assert rule.needs == {Need.ATTENTION, Need.MODULES}
    assert str(rule.with_fixed_count()) == "atp-fixed"
    assert not RankRule.parse("atp-fixed").is_adaptive
    assert RankRule.parse("atp+nearest").merge == "nearest"
    with pytest.raises(ScheduleError, match="are no weights"):
        RankRule.parse("atp+scored")
    with pytest.raises(ScheduleError, match="fixed='yes'; it is True or False"):
        Atp(fixed="yes")


def test_all_tokens_of_the_image_look_at_earlier_ones_and_the_text_behind_at_all():
    """Three of text, five of the image, two of text; two that were generated do not ask."""
    later, text = RankRule.parse("atp").looks
    assert later.asking(10, 2, 5).tolist() == [3, 4, 5, 6, 7]
    assert later.shares(later.asking(10, 2, 5)).tolist() == [1.0] * 5
    assert not later.sees_itself
    assert text.asking(10, 2, 5).tolist() == [8, 9]
    assert text.shares(text.asking(10, 2, 5)) is None
