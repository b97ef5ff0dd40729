"""Which requests of a cut are ranked together by attention, and where their queries and keys are.

One batch of requests costs the host what one request does. C requests in a batch have K places for
keys each: those of a prefix that earlier steps or other requests computed, at its end, then the rows of
this step. Where a request has fewer, the places in front and behind are seen by no query.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vtr_vllm.ranking.attention import AttentionRule
from vtr_vllm.ranking.judged_rule import JudgedRule, looks_of
from vtr_vllm.ranking.probabilities import CHUNK
from vtr_vllm.reduction.batch import RequestCut
from vtr_vllm.reduction.request import IntArray
from vtr_vllm.schedules import RankRule
from vtr_vllm.upload import upload_together


@dataclass(frozen=True, eq=False)
class RankGroup:
    """C requests of one cut, with one rule, Q queries, L rows and a prefix of P at most."""

    rule: AttentionRule
    look: int
    """Which of the ``looks`` of its members' rule."""
    shows_values: bool
    """Whether modules judge by the values of each member's last query, too."""
    places: Sequence[int]
    """[C] which members of the cut, ascending."""
    rows: torch.Tensor
    """[C * L] int32: row before the cut."""
    asking: torch.Tensor
    """[C * Q] int32: rows that ask."""
    index: torch.Tensor
    """[C] int32: ``places``."""
    last: torch.Tensor | None = None
    """[C, Q] int32: the last key that a query sees; None: all see all, or there is ``bias``."""
    itself: torch.Tensor | None = None
    """[C, Q] int32: the key of a query's own row, where what it gives that does not count; None: it does."""
    bias: torch.Tensor | None = None
    """[C, K] float32, where Q is 1: minus infinity at keys that are not seen, else 0; None: all are."""
    share: torch.Tensor | None = None
    """[C, Q] float32: what a query counts; None: all alike."""
    of_each: torch.Tensor | None = None
    """[C, L] float32: by what a row's attention is multiplied, 0 for padding; None: all alike."""
    weights: torch.Tensor | None = None
    """[query heads of all ranks] float32: what a head counts; None: all alike."""
    first: torch.Tensor | None = None
    """[C] int32: the first key that is seen; None: all are, or there is ``bias``."""
    before: torch.Tensor | None = None
    """[C * P] int32: positions of the prefix."""
    requests: torch.Tensor | None = None
    """[C] int32: which requests of the step have keys that are read back; None: nothing is."""
    stored: torch.Tensor | None = None
    """[C * P] or, where the rows' own keys are read back too, [C * (P + L)] int32: which of the keys in
    C x blocks."""
    blocks: int = 0
    """Blocks of a request that hold what is read back."""


def rank_groups(
    cuts: Mapping[int, Sequence[RequestCut]],
    rows: int,
    block_size: int,
    rounds: bool,
    device: torch.device,
) -> Mapping[int, Sequence[RankGroup]]:
    """Cut layer -> groups, of the requests whose rule looks at attention in a step of ``rows``.

    ``rounds``: the rows' own keys are read back too. A group has no more than ``most_keys``, padding
    included, or one request.
    """
    groups: list[tuple[int, int, list[int]]] = []
    for layer, members in cuts.items():
        by_rule: dict[RankRule, list[int]] = defaultdict(list)
        for place, cut in enumerate(members):
            if looks_of(cut.rule):
                by_rule[cut.rule].append(place)
        for rule, places in by_rule.items():
            for number, look in enumerate(looks_of(rule)):
                most = most_keys(rows, look.rope)
                alike = _of_like_length(look, members, places, most)
                groups += [(layer, number, own) for own in alike]
    if not groups:
        return {}
    looks = [looks_of(cuts[layer][places[0]].rule)[number] for layer, number, places in groups]
    hosts = [
        _arrays(look, cuts[layer], places, block_size, rounds)
        for look, (layer, _, places) in zip(looks, groups, strict=True)
    ]
    arrays = [array for host, _ in hosts for array in host.values()]
    sent = iter(upload_together(arrays, device))
    made = defaultdict(list)
    for look, (layer, number, places), (host, blocks) in zip(looks, groups, hosts, strict=True):
        there = {name: next(sent) for name in host}
        for name in ("share", "of_each", "weights", "bias"):
            if name in there:
                there[name] = there[name].view(torch.float32)
        rule = cuts[layer][places[0]].rule
        shows = isinstance(rule, JudgedRule) and number == len(rule.looks) - 1
        made[layer].append(RankGroup(look, number, shows, places, blocks=blocks, **there))
    return made


def most_keys(rows: int, rope: bool = True) -> int:
    """Of several requests that are ranked together in a step of ``rows``."""
    # Taking rotary positions out needs four times the memory for a while.
    return min(CHUNK if rope else CHUNK // 4, 2 * rows)


def _of_like_length(
    look: AttentionRule, members: Sequence[RequestCut], places: Sequence[int], most: int
) -> list[list[int]]:
    """``places`` in groups whose padding is less than what is padded, with ``most`` keys."""

    def sizes(place: int) -> tuple[int, int]:
        cut = members[place]
        return len(_asking(look, cut)), cut.stored + cut.num_rows

    groups: list[list[int]] = []
    largest = (0, 0)
    for place in sorted(places, key=lambda p: (sizes(p)[0].bit_length(), sizes(p))):
        own = sizes(place)
        grown = (max(own[0], largest[0]), max(own[1], largest[1]))
        if groups:
            smallest = sizes(groups[-1][0])
            least = min(sizes(other)[1] for other in groups[-1])
            fits = grown[0] <= 2 * smallest[0] and grown[1] <= 2 * least
            if fits and (len(groups[-1]) + 1) * grown[1] <= most:
                groups[-1].append(place)
                largest = grown
                continue
        groups.append([place])
        largest = own
    return [sorted(group) for group in groups]


def _asking(look: AttentionRule, cut: RequestCut) -> IntArray:
    return look.asking(cut.prompt_rows, cut.request.instruction_len, cut.vision_before)


def _arrays(
    look: AttentionRule,
    members: Sequence[RequestCut],
    places: Sequence[int],
    block_size: int,
    rounds: bool,
) -> tuple[dict[str, IntArray], int]:
    """What is sent of a group, by field, and its blocks."""
    cuts = [members[place] for place in places]
    asking = [_asking(look, cut) for cut in cuts]
    table = np.array(
        [
            (cut.first_row, cut.num_rows, cut.stored, cut.index, len(own))
            for cut, own in zip(cuts, asking, strict=True)
        ]
    )
    first_row, num_rows, computed, requests, queries = table.T[:, :, None]
    _, longest, prefix, _, most = table.max(axis=0).tolist()
    place = np.arange(longest)
    asks = np.stack([np.pad(own, (0, most - len(own)), mode="edge") for own in asking])
    arrays = {
        "rows": first_row + np.minimum(place, num_rows - 1),
        "asking": first_row + asks,
        "index": np.array(places),
    }
    if (share := _shares(look, asking)) is not None:
        arrays["share"] = share.view(np.int32)
    if (weights := look.head_weights()) is not None:
        arrays["weights"] = weights.view(np.int32)
    if not look.sees_itself:
        arrays["itself"] = prefix + asks
    if look.by_visible:
        seeing = [len(own) - np.searchsorted(own, place) for own in asking]
        each = (place < num_rows) * queries / np.maximum(np.stack(seeing), 1)
        arrays["of_each"] = each.astype(np.float32).view(np.int32)
    blocks = 0
    missing = prefix - computed
    if prefix:
        arrays["before"] = np.maximum(np.arange(prefix) - missing, 0)
    arrays |= _seen(prefix + asks, missing, prefix + longest)
    if prefix or rounds:
        held = computed + num_rows if rounds else computed
        blocks = -(-int(held.max()) // block_size)
        read = np.arange(prefix + longest if rounds else prefix) - (prefix - computed)
        start = np.arange(len(cuts))[:, None] * blocks * block_size
        arrays["stored"] = start + np.clip(read, 0, np.maximum(held - 1, 0))
        arrays["requests"] = requests.ravel()
    flat = {"rows", "asking", "before", "stored"}
    return {name: a.ravel() if name in flat else a for name, a in arrays.items()}, blocks


def _shares(look: AttentionRule, asking: Sequence[IntArray]) -> npt.NDArray[np.float32] | None:
    """[C, Q] what each query counts, nothing behind a request's last; None: all alike."""
    queries = np.array([len(own) for own in asking])[:, None]
    most = int(queries.max())
    stated = [own for own in map(look.shares, asking) if own is not None]
    if stated:
        return np.stack([np.pad(own, (0, most - len(own))) for own in stated])
    if (queries == most).all():
        return None
    return ((queries > np.arange(most)) / queries).astype(np.float32)


def _seen(last: IntArray, first: IntArray, keys: int) -> dict[str, IntArray]:
    """Which of ``keys`` the queries see, from ``first`` [C, 1] to ``last`` [C, Q]: as fields of a group."""
    behind, before = last.min() < keys - 1, bool(first.any())
    if last.shape[1] == 1 and (behind or before):
        place = np.arange(keys)
        seen = (place >= first) & (place <= last)
        return {"bias": np.where(seen, np.float32(0), np.float32(-np.inf)).view(np.int32)}
    return ({"last": last} if behind else {}) | ({"first": first.ravel()} if before else {})
