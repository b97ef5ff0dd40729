from tests.vtr_vllm.ranking.merges.of import merged


def test_all_go_into_the_last_kept_one_and_the_lowest_counts_most():
    found = merged("tail", [[0.9, 0.9], [0.1, 0.1]], [1.0, 10.0], [4.0, 7.0])
    assert found == [1.0, (1 * 10 + 2 * 4 + 3 * 7) / 6]
