import pytest

from tests.vtr_vllm.ranking.merges.of import merged


def test_each_counts_as_much_as_its_score():
    found = merged(
        "scored", [[0.9, 0.1], [0.2, 0.3]], [1.0, 10.0], [4.0, 20.0], [0.6, 0.2], [0.1, 0.2]
    )
    assert found == pytest.approx([(0.6 * 1 + 0.1 * 4) / 0.7, (0.2 * 10 + 0.2 * 20) / 0.4])
