import pytest

from tests.vtr_vllm.ranking.merges.of import merged
from vtr_vllm.ranking.merges.neighbours import COUNT


def test_what_is_most_like_a_kept_token_is_added_by_its_attention():
    """Each kept one takes 32; one that is like to both joins both. Nothing is divided."""
    near = [[1.0] * COUNT + [0.0], [0.0] + [1.0] * COUNT]
    dropped = [1.0, *[2.0] * (COUNT - 1), 3.0]
    found = merged("neighbours", near, [10.0, 20.0], dropped, dropped_scores=[0.1] * (COUNT + 1))
    middle = 2.0 * (COUNT - 1)
    assert found == pytest.approx([10 + 0.1 * (1 + middle), 20 + 0.1 * (middle + 3)], rel=1e-5)


def test_fewer_than_32():
    assert merged("neighbours", [[0.5]], [1.0], [3.0], dropped_scores=[0.5]) == [2.5]
