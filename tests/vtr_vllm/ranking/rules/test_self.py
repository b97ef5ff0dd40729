from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.vtr_vllm.ranking.by_itself import Attention, Given, score
from tests.vtr_vllm.ranking.given import alone
from vtr_vllm.errors import ScheduleError
from vtr_vllm.ranking.rules.self import MOST, Self
from vtr_vllm.schedules.keep_rates import check_keep_and_rules


def one_image(tokens, prefix=2):
    """An image behind ``prefix`` words, all of it in the rows."""
    draw = torch.Generator().manual_seed(tokens)
    attention = Attention(
        query=torch.randn(tokens, 2, 4, generator=draw),
        key=torch.randn(prefix + tokens, 2, 4, generator=draw),
        prefix=prefix,
        scale=0.5,
        combine=alone,
        unrotated=lambda: attention,
    )
    return Given(
        vision=torch.arange(tokens),
        prompt_rows=tokens,
        instruction_rows=0,
        image_sizes=[tokens],
        vision_rows=tokens,
        seeds=[1],
        grids=[None],
        attention=attention,
    )


def by_hand(given, asking):
    attention = given.attention
    tokens = given.vision_rows
    matrix = torch.zeros(tokens, tokens)
    for row in range(tokens):
        keys = attention.key[: attention.prefix + row + 1]
        logits = torch.einsum("hd,khd->hk", attention.query[row], keys) * attention.scale
        matrix[row, : row + 1] = logits.softmax(-1).mean(0)[attention.prefix :]
    return torch.tensor(
        [
            sum(float(matrix[row, token]) for row in asking if row >= token)
            / sum(row >= token for row in asking)
            for token in range(tokens)
        ]
    )


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_each_token_gets_the_mean_of_those_that_see_it(tokens):
    given = one_image(tokens)
    torch.testing.assert_close(score(Self(), given), by_hand(given, list(range(tokens))))


def test_of_a_large_image_some_rows_ask():
    tokens = 3 * MOST - 1
    asking = Self().asking(tokens, 0, tokens)
    assert len(asking) == MOST
    assert asking[-1] == tokens - 1
    assert set(np.diff(asking)) <= {2, 3}
    given = one_image(tokens)
    torch.testing.assert_close(score(Self(), given), by_hand(given, asking.tolist()))


def test_what_stands_before_the_image_counts():
    """The true probabilities: a head that looks at the words before is no vote for a token."""
    given = one_image(5)
    loud = given.attention.key.clone()
    loud[:2] = 20 * given.attention.query[2].mean(0)
    quiet = score(Self(), replace(given, attention=replace(given.attention, key=loud)))
    assert quiet.sum() < score(Self(), given).sum()


def test_it_stands_beside_no_rule_that_sees_the_question():
    keep = (1.0, 1.0, 0.5, 0.25)
    check_keep_and_rules(keep, ["self", "previous"], 4)
    with pytest.raises(ScheduleError, match="self ranks the tokens of one image"):
        check_keep_and_rules(keep, ["self", "last"], 4)
