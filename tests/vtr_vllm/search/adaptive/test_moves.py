from hypothesis import given
from hypothesis import strategies as st

from vtr_vllm.ranking import RankRule
from vtr_vllm.search.adaptive.moves import ATTENTION, BLIND, neighbours, with_counts
from vtr_vllm.search.candidates import Candidate

N = 16
falling = st.lists(st.integers(0, N), min_size=6, max_size=6).map(
    lambda counts: sorted(counts, reverse=True)
)


@given(falling)
def test_neighbours_are_schedules_of_their_own(counts):
    start = with_counts(counts, {}, N)
    found = neighbours(start, N)  # a count that rises, or a rule too few, would be refused
    assert len(set(found)) == len(found)
    assert start not in found
    for each in found:
        assert sorted(each.keep, reverse=True) == list(each.keep)


def cuts(candidate: Candidate) -> list[int]:
    before = (1.0, *candidate.keep)
    return [i for i, rate in enumerate(candidate.keep) if rate < before[i]]


def test_by_hand():
    start = with_counts([16, 16, 8, 8], {}, N)
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


def ranked(counts, rules):
    """Text of the rule of each cut; ``rules``: text by layer."""
    given = {layer: RankRule.parse(rule) for layer, rule in rules.items()}
    return [str(rule) for rule in with_counts(counts, given, N).rules]


def test_without_rules_attention_ranks_as_soon_as_it_can():
    assert ranked([12, 8, 4, 2], {}) == [str(BLIND)] * 2 + [str(ATTENTION)] * 2


def test_a_cut_ranks_by_the_nearest_rule():
    rules = {0: "grid", 2: "diverse", 5: "last:90"}
    assert ranked([8, 8, 4, 4, 4, 2], rules) == ["grid", "diverse", "last:90"]
    assert ranked([16, 8, 8, 4, 2, 1], rules) == ["grid", "diverse", "last:90", "last:90"]
    assert ranked([12, 8, 8], {2: "last"}) == ["diverse", "diverse"]


def test_an_order_that_is_repeated_is_ranked_anew():
    assert ranked([16, 16, 8, 4], {2: "last", 3: "previous"}) == ["last", "last"]
