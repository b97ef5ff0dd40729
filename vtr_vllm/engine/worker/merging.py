"""Adds what a cut drops to what stays, for requests that ask for it.

Everything of a group of like members (requests, or images) is done at once, and sizes are known on
the host: nothing waits for the device.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch.nn.functional import normalize

from vtr_vllm.ranking.merge import Merge, MergeInputs, merges
from vtr_vllm.reduction.batch import RequestCut
from vtr_vllm.upload import upload

TILE_BYTES = 8 << 20
"""Of the likeness of kept and dropped tokens that is held at a time, and of the weights."""


class Stream(Protocol):
    """What goes from layer to layer: see ``decoder``."""

    hidden: torch.Tensor
    residual: torch.Tensor | None

    def at(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """[rows, hidden] of the residual stream."""


@dataclass(frozen=True, eq=False)
class _Group:
    """U members that merge alike, K vision tokens kept of each and D dropped, best-ranked first."""

    merge: Merge
    kept: torch.Tensor
    """[U, K] rows before the cut."""
    places: torch.Tensor
    """[U, K] the same among the rows that are left."""
    dropped: torch.Tensor
    """[U, D] rows before the cut."""
    kept_scores: torch.Tensor
    dropped_scores: torch.Tensor

    @classmethod
    def of(
        cls,
        members: Sequence[tuple[int, RequestCut, int]],
        selection: torch.Tensor,
        scores: torch.Tensor,
        vision: torch.Tensor,
    ) -> Self:
        """``members``: place among the cut's, cut, and how many rows are left before its first."""
        cut = members[0][1]
        numbers = np.array(
            [
                (place, each.first_row, left, each.num_rows - 1, each.kept_rows - 1)
                for place, each, left in members
            ]
        )
        sent = upload(torch.from_numpy(numbers.T.copy()), vision.device)
        place, first, left, last, last_kept = sent[:, :, None]
        own_scores = scores[place[:, 0]]
        # Where texts differ in length, the last row, of text, pads the shorter ones.
        most = torch.arange(numbers[:, 3].max() + 1, device=vision.device)
        most_kept = torch.arange(numbers[:, 4].max() + 1, device=vision.device)
        staying = left + torch.minimum(most_kept, last_kept)
        kept = selection.index_select(0, staying.view(-1)).view(staying.shape).long()
        is_text = vision.index_select(0, kept.view(-1)).view(kept.shape) < 0
        order = is_text.byte().sort(dim=1, stable=True).indices[:, : cut.kept_vision]
        kept, staying = kept.gather(1, order), staying.gather(1, order)
        is_left = torch.zeros_like(vision, dtype=torch.bool).index_fill_(0, selection.long(), True)
        rows = first + torch.minimum(most, last)
        stays = is_left.index_select(0, rows.view(-1)).view(rows.shape)
        count = cut.num_rows - cut.kept_rows
        dropped = rows.gather(1, stays.byte().sort(dim=1, stable=True).indices[:, :count])
        kept_scores, kept, staying = _best_first(own_scores, first, kept, staying)
        dropped_scores, dropped = _best_first(own_scores, first, dropped)
        merge = merges()[cut.rule.merge]
        return cls(merge, kept, staying, dropped, kept_scores, dropped_scores)

    def tiles(self, width: int) -> Iterator[tuple[slice, slice]]:
        """Which kept and which dropped tokens are looked at at a time; ``width`` is a state's."""
        members, kept = self.kept.shape
        dropped = self.dropped.shape[1]
        along, across = (kept, dropped) if self.merge.by_kept else (dropped, kept)
        size = max(1, TILE_BYTES // (4 * members * max(across, width)))
        for first in range(0, along, size):
            part = slice(first, first + size)
            yield (part, slice(None)) if self.merge.by_kept else (slice(None), part)

    def merged(self, stream: Stream) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[U * K, hidden] of the hidden state and of the residual, as they go on."""
        parts = [stream.hidden] if stream.residual is None else [stream.hidden, stream.residual]
        own = self.merge.own(self.kept_scores)
        totals = [_floats(part, self.kept).mul_(own[..., None]) for part in parts]
        mass = own.clone()
        likeness = _directions(stream, self.kept)
        for some_kept, some_dropped in self.tiles(likeness.shape[-1]):
            dropped = self.dropped[:, some_dropped]
            inputs = MergeInputs(
                likeness=torch.bmm(likeness[:, some_kept], _directions(stream, dropped).mT),
                dropped_scores=self.dropped_scores[:, some_dropped],
                first=some_dropped.start or 0,
                dropped=self.dropped.shape[1],
            )
            weights = self.merge.weights(inputs)
            mass[:, some_kept] += weights.sum(-1)
            for total, part in zip(totals, parts, strict=True):
                total[:, some_kept].baddbmm_(weights, _floats(part, dropped))
        del likeness
        found = [self._ended(*each, mass) for each in zip(totals, parts, strict=True)]
        return found[0], found[1] if len(found) > 1 else None

    def _ended(self, total: torch.Tensor, part: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
        """[U * K, hidden] of a sum."""
        if self.merge.is_mean:
            # A token whose weight and gain are nothing stays as it is.
            nothing = (mass <= 0)[..., None]
            total = torch.where(nothing, _floats(part, self.kept), total.div_(mass[..., None]))
        return total.flatten(0, 1).to(part.dtype)


class Merged:
    """What the members of one cut that merge go on with; made before the rows are dropped."""

    def __init__(
        self,
        members: Sequence[RequestCut],
        selection: torch.Tensor,
        scores: torch.Tensor,
        vision: torch.Tensor,
        stream: Stream,
        agree: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """``selection`` [rows left] of the rows before, ``scores`` [members, most rows of one] and
        ``vision`` [rows before], as ``Rows`` has them. ``agree`` makes of one rank's values all ranks'.
        """
        self._parts = []
        for alike in _alike(members):
            group = _Group.of(alike, selection, scores, vision)
            hidden, residual = group.merged(stream)
            agreed = None if residual is None else agree(residual)
            # Places too: they are in the order of the scores, whose last bit may differ between ranks.
            self._parts.append((agree(group.places.flatten()), agree(hidden), agreed))

    def put_into(self, stream: Stream) -> None:
        """Put them where their tokens are, once the rows are dropped."""
        for places, hidden, residual in self._parts:
            stream.hidden.index_copy_(0, places, hidden)
            if stream.residual is not None and residual is not None:
                stream.residual.index_copy_(0, places, residual)


def _alike(members: Sequence[RequestCut]) -> list[list[tuple[int, RequestCut, int]]]:
    """Members that merge, in groups of one merge and one size; with each how many rows are left before
    its first row."""
    groups = defaultdict(list)
    gone = 0
    for place, cut in sorted(enumerate(members), key=lambda each: each[1].first_row):
        if cut.rule.merge and cut.kept_vision and cut.kept_rows < cut.num_rows:
            rows = cut.num_rows if cut.request.is_local else None
            form = (cut.rule.merge, cut.kept_vision, cut.num_rows - cut.kept_rows, rows)
            groups[form].append((place, cut, cut.first_row - gone))
        gone += cut.num_rows - cut.kept_rows
    return list(groups.values())


def _best_first(
    scores: torch.Tensor, first: torch.Tensor, rows: torch.Tensor, *along: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Scores, ``rows`` and what goes along with them [U, n], in the order of ``scores`` [U, L]."""
    own = torch.nan_to_num(scores.gather(1, rows - first))
    ordered, order = own.sort(dim=1, descending=True, stable=True)
    return ordered, *(each.gather(1, order) for each in (rows, *along))


def _floats(part: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[U, n, width] float32 of ``rows`` [U, n]."""
    return part.index_select(0, rows.reshape(-1)).float().unflatten(0, rows.shape)


def _directions(stream: Stream, rows: torch.Tensor) -> torch.Tensor:
    """[U, n, hidden] float32 of length 1: the residual stream at ``rows`` [U, n]."""
    return normalize(stream.at(rows.reshape(-1)).float(), dim=-1).unflatten(0, rows.shape)
