import pytest
import torch

from tests.vtr_vllm.ranking.given import PREFIX, inputs
from vtr_vllm.errors import ScheduleError
from vtr_vllm.ranking import RankRule
from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rules.cls import Cls


def test_scores_that_are_given_are_read_by_token():
    given = inputs(prefix=PREFIX)
    scores = Cls().score(given)
    for row, number in enumerate(given.vision.tolist()):
        if number >= 0:
            assert scores[row] == given.cls_attention[number]


ATTENTION = [
    [1, 2, 9, 0],  # 12
    [5, 5, 5, 5],  # 20
    [0, 0, 0, 8],  # 8
    [7, 1, 1, 4],  # 13
]


def order(rule, grid=(4, 4)):
    """Tokens of one image, the best first."""
    attention = torch.tensor([[value for row in ATTENTION for value in row]], dtype=torch.float32)
    tokens = torch.arange(16)[None]
    given = ImageInputs(tokens=tokens, size=16, grid=grid, seeds=[0], cls_attention=attention)
    (scores,) = RankRule.parse(rule).score_images(given)
    return scores.argsort(descending=True, stable=True).tolist()


def test_rows_stay_whole():
    assert order("cls-rows") == [4, 5, 6, 7, 12, 13, 14, 15, 0, 1, 2, 3, 8, 9, 10, 11]
    assert order("cls-rows", None) == order("cls")


def test_by_turns_from_the_attention_and_from_an_even_grid():
    """A token that had its turn is passed over."""
    attention, even = order("cls"), order("grid")
    assert attention[:4] == [2, 11, 12, 4]
    expected = dict.fromkeys(token for both in zip(attention, even, strict=True) for token in both)
    assert order("cls-spread") == list(expected)


@pytest.mark.parametrize("pick", ["column", None, True])
def test_other_values_are_refused(pick):
    with pytest.raises(ScheduleError, match="it is one of tokens, rows, spread"):
        Cls(pick=pick)
