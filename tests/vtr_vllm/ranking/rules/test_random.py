from dataclasses import replace

import torch

from tests.vtr_vllm.ranking.given import inputs
from tests.vtr_vllm.reduction.one_request import keep_best
from vtr_vllm.ranking.rules.random import Random


def test_it_is_fixed_by_the_seed_and_nests():
    given, rule = inputs(), Random()
    scores = rule.score(given)
    assert not torch.equal(scores, rule.score(replace(given, seeds=[s + 2 for s in given.seeds])))
    first = keep_best(scores, given.vision, 12 + 5)
    left = given.vision[first]
    second = first[keep_best(rule.score(replace(given, vision=left)), left, 12 + 2)]
    assert second.tolist() == keep_best(scores, given.vision, 12 + 2).tolist()
