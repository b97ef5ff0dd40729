from tests.vtr_vllm.ranking.merges.of import merged

LIKENESS = [[0.9, 0.1, 0.5], [0.2, 0.3, 0.5]]


def test_a_kept_token_is_the_mean_of_what_is_most_like_it():
    """The third is as like to both, and joins the better-ranked first."""
    found = merged("nearest", LIKENESS, [1.0, 10.0], [4.0, 20.0, 7.0])
    assert found == [(1 + 4 + 7) / 3, (10 + 20) / 2]


def test_a_token_that_nothing_is_like_stays():
    assert merged("nearest", [[0.9], [0.2]], [1.0, 10.0], [3.0]) == [2.0, 10.0]
