from hypothesis import given
from hypothesis import strategies as st

from vtr_vllm.ranking import RankRule
from vtr_vllm.search.adaptive.moves import neighbours, with_counts
from vtr_vllm.search.candidates import Candidate

N = 16
falling = st.lists(st.integers(0, N), min_size=6, max_size=6).map(
    lambda counts: sorted(counts, reverse=True)
)


@given(falling)
def test_neighbours_are_schedules_of_their_own(counts):
    start = with_counts(counts, (), N)
    found = neighbours(start, N)  # a count that rises, or a rule too few, would be refused
    assert len(set(found)) == len(found)
    assert start not in found
    for each in found:
        assert sorted(each.keep, reverse=True) == list(each.keep)
        for layer, rule in zip(cuts(each), each.rules, strict=True):
            assert rule.needs_attention == (layer >= 2)


def cuts(candidate: Candidate) -> list[int]:
    before = (1.0, *candidate.keep)
    return [i for i, rate in enumerate(candidate.keep) if rate < before[i]]


def test_by_hand():
    start = with_counts([16, 16, 8, 8], (), N)
    found = {tuple(round(N * rate) for rate in each.keep) for each in neighbours(start, N)}
    assert found >= {
        (16, 16, 0, 0),
        (16, 16, 4, 4),
        (16, 16, 12, 12),
        (16, 16, 8, 0),  # one cut more
        (16, 8, 8, 8),  # a layer earlier
        (16, 16, 16, 8),  # a layer later
        (8, 8, 8, 8),
        (0, 0, 0, 0),
    }


def test_rules_stay():
    rules = (RankRule.parse("grid"), RankRule.parse("last"))
    assert with_counts([8, 8, 4], rules, N).rules == rules
