from tests.vtr_vllm.ranking.merges.of import merged


def test_only_the_best_three_in_ten_are_taken_up():
    """Four dropped ones, best first: .3 of them are the first two."""
    found = merged(
        "recycled", [[0.9, 0.1, 0.9, 0.9], [0.2, 0.3, 0.1, 0.1]], [1.0, 10.0], [3, 20.0, 99, 99]
    )
    assert found == [2.0, 15.0]
