from tests.vtr_vllm.ranking.given import PREFIX, inputs
from vtr_vllm.ranking.rules.cls import Cls


def test_scores_that_are_given_are_read_by_token():
    given = inputs(prefix=PREFIX)
    scores = Cls().score(given)
    for row, number in enumerate(given.vision.tolist()):
        if number >= 0:
            assert scores[row] == given.cls_attention[number]
