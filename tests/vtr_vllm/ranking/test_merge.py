import pytest
import torch

from vtr_vllm.errors import ScheduleError
from vtr_vllm.ranking import RankRule
from vtr_vllm.ranking.merge import Merge, MergeInputs, merges


@pytest.mark.parametrize(
    "text", ["last-max+nearest", "cls+neighbours", "diverse+tail", "self+scored"]
)
def test_a_rule_that_merges_has_a_text(text):
    rule = RankRule.parse(text)
    assert str(rule) == text
    assert rule == RankRule.parse(text) != RankRule.parse(text.partition("+")[0])


@pytest.mark.parametrize("text", ["last+", "last+x", "last+nearest+tail", "last+nearest-max"])
def test_an_unknown_merge_is_refused(text):
    with pytest.raises(ScheduleError, match="is unknown; known are nearest, neighbours, recycled"):
        RankRule.parse(text)


@pytest.mark.parametrize("text", ["diverse+scored", "random+neighbours", "saliency+scored"])
def test_scores_that_are_no_weights(text):
    with pytest.raises(ScheduleError, match="merge by nearest, or rank by attention"):
        RankRule.parse(text)


def test_a_second_merge_of_a_name_is_refused():
    with pytest.raises(TypeError, match="two merges are named nearest"):
        type("Again", (Merge,), {"name": "nearest"})


@pytest.mark.parametrize("name", merges())
def test_parts_give_what_the_whole_gives(name):
    draw = torch.Generator().manual_seed(1)
    merge, kept, dropped = merges()[name], 6, 70
    likeness = torch.rand(2, kept, dropped, generator=draw)
    dropped_scores = torch.rand(2, dropped, generator=draw)

    def weights(some_kept, some_dropped):
        return merge.weights(
            MergeInputs(
                likeness[:, some_kept, some_dropped],
                dropped_scores[:, some_dropped],
                some_dropped.start or 0,
                dropped,
            )
        )

    whole = slice(None)
    if merge.by_kept:
        parts = [weights(slice(first, first + 4), whole) for first in (0, 4)]
    else:
        parts = [weights(whole, slice(first, first + 30)) for first in (0, 30, 60)]
    assert torch.equal(torch.cat(parts, 1 if merge.by_kept else 2), weights(whole, whole))
