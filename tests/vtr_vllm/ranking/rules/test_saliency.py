from dataclasses import replace

import torch

from tests.vtr_vllm.ranking.given import at_tokens, inputs
from vtr_vllm.ranking.rules.saliency import Saliency


def test_each_image_is_looked_at_by_itself():
    given = inputs()
    other = given.embeddings.clone()
    other[3:] += 100.0 * torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    moved = replace(given, embeddings=other)
    before, after = (at_tokens(Saliency().score(g), g) for g in (given, moved))
    assert torch.equal(before[:3], after[:3])
    assert not torch.isclose(before[3:], after[3:]).any()


def test_it_is_the_distance_from_the_median():
    embeddings = torch.ones(8, 16)
    embeddings[3:] = -2.0
    embeddings[1, 0] += 3.0
    embeddings[6, :4] -= 1.0
    given = replace(inputs(), embeddings=embeddings.bfloat16())
    scores = at_tokens(Saliency().score(given), given)
    assert scores.tolist() == [0, 3, 0, 0, 0, 0, 2, 0]


def test_an_image_without_tokens_is_passed_over():
    given = inputs()
    with_empty = replace(given, image_sizes=[0, 3, 0, 5], seeds=[1, 2, 3, 4], grids=[None] * 4)
    assert torch.equal(Saliency().score(with_empty), Saliency().score(given))
