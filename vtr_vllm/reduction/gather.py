"""Which rows of a step are still there, from cut to cut.

All members of a cut are ordered together: whole requests, or images of them. C members that lose rows,
of at most L rows each, lie in a table [C, L], in which a shorter one is followed by padding: one sort
orders every row of it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from vtr_vllm.ranking.mass import fewest_holding
from vtr_vllm.reduction.batch import BatchPlan, RequestCut
from vtr_vllm.upload import upload, upload_together


@dataclass(frozen=True, eq=False)
class _CutTable:
    """One cut in the layout just before it."""

    members: Sequence[RequestCut]
    rows: torch.Tensor
    """[C, L] int32: the rows of each member; padding repeats its last one."""
    stay: torch.Tensor
    """[rows of C that stay] int32: their places in C x L once each member's rows are ordered."""
    others: torch.Tensor
    """[rows of other requests] int32."""
    limits: torch.Tensor | None
    """[C, L] float32: no score is above it. Padding is last, whatever the row that it repeats; None:
    there is none."""

    @classmethod
    def of(cls, members: Sequence[RequestCut], *tables: torch.Tensor) -> Self:
        """``tables`` are those of ``_host_table``, on the device."""
        rows, stay, others, bits = tables
        return cls(members, rows, stay, others, bits.view(torch.float32) if len(bits) else None)


class Rows:
    """The rows left of one reduced prefill step, on the device.

    Cuts come in the order of their layers. No method waits for the device: every size is known on
    the host, of an adaptive cut from ``follow`` on.
    """

    def __init__(
        self, plan: BatchPlan, device: torch.device, positions: torch.Tensor | None = None
    ) -> None:
        """``positions`` [..., N or more] int64 go along."""
        assert plan.vision is not None
        least = np.where(plan.vision < 0, np.inf, -np.inf).astype(np.float32)
        numbers = [np.arange(plan.num_rows), plan.vision, least.view(np.int32)]
        if plan.image is not None:
            numbers.append(plan.image)
        cuts = sorted(plan.cuts.items())
        sent = upload_together([np.stack(numbers), *_host_tables(plan, cuts)], device)
        self._tables = _sent_tables(cuts, sent[1:])
        """Of the cuts to come."""
        self._numbers = sent[0].long()
        """[axes of positions + 3 or 4, rows left]: what the properties read."""
        self._axes = 0
        self._flat_positions = True
        if positions is not None:
            ours = positions[..., : plan.num_rows]
            self._flat_positions = ours.ndim == 1
            self._axes = 1 if self._flat_positions else len(ours)
            self._numbers = torch.cat([ours.view(self._axes, -1), sent[0]])
        self._has_images = plan.image is not None

    @property
    def positions(self) -> torch.Tensor:
        """[..., rows] int64, contiguous."""
        return self._numbers[0] if self._flat_positions else self._numbers[: self._axes]

    @property
    def original(self) -> torch.Tensor:
        """[rows] int64: where each row stood before any cut."""
        return self._numbers[self._axes]

    @property
    def vision(self) -> torch.Tensor:
        """[rows] int64: vision-token number within its part, -1 for text."""
        return self._numbers[self._axes + 1]

    @property
    def _least(self) -> torch.Tensor:
        """[rows] float32 that no score is below: infinity for text, which is never dropped."""
        # The low half of each number: it went to the device as 32 bits.
        return self._numbers[self._axes + 2].view(torch.float32)[::2]

    @property
    def of_members(self) -> torch.Tensor:
        """[C, L] int32: the rows of each member of the cut that comes next; padding repeats the last."""
        return self._tables[0].rows

    def counts(
        self, members: Sequence[RequestCut], scores: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        """[C] int64 vision tokens of each member of the next cut that hold their share of its scores.

        ``scores`` [C, L] float32, ``shares`` [C] float32 below 1; 0: those that score above 0.
        """
        table = self._tables[0]
        assert table.members == members
        is_vision = self.vision.index_select(0, table.rows.view(-1)).view(table.rows.shape) >= 0
        if table.limits is not None:
            is_vision &= table.limits > 0
        of_tokens = scores.nan_to_num().clamp(min=0) * is_vision
        return torch.where(shares > 0, fewest_holding(of_tokens, shares), (of_tokens > 0).sum(-1))

    def follow(self, plan: BatchPlan, layer: int) -> None:
        """Go on by ``plan``, which is another one from the cut before ``layer`` on: the next."""
        cuts = sorted(cut for cut in plan.cuts.items() if cut[0] >= layer)
        sent = upload_together(list(_host_tables(plan, cuts)), self._numbers.device)
        self._tables = _sent_tables(cuts, sent)

    def cut(
        self,
        members: Sequence[RequestCut],
        scores: torch.Tensor,
        agree: Callable[[torch.Tensor], torch.Tensor] = lambda selection: selection,
    ) -> torch.Tensor:
        """Drop rows; return the selection [rows left] int32, ascending, into the rows before.

        ``scores`` [C, L] float32. ``agree`` makes of the selection of one rank that of all.
        """
        table = self._tables.popleft()
        assert table.members == members
        order = self._order(table, scores)
        selection = table.rows.gather(1, order).view(-1).index_select(0, table.stay)
        if len(table.others):
            selection = torch.cat([selection, table.others])
        selection = agree(selection.sort().values)
        self._numbers = self._numbers.index_select(1, selection)
        return selection

    def _order(self, table: _CutTable, scores: torch.Tensor) -> torch.Tensor:
        """[C, L] of each member: text, then vision tokens from the best on, then padding."""
        least = self._least.index_select(0, table.rows.view(-1)).view(table.rows.shape)
        order = _order(scores, least, table.limits)
        for place, member in enumerate(table.members):
            if member.floors is not None:
                assert self._has_images
                image = self._numbers[-1][rows_of(member)]
                ranked = order[place, : member.num_rows]
                ranked.copy_(_floors_first(ranked, image, member.floors))
        return order


_Cuts = Sequence[tuple[int, Sequence[RequestCut]]]
"""(layer, members), by depth."""


def _host_tables(plan: BatchPlan, cuts: _Cuts) -> Iterator[npt.NDArray[np.integer]]:
    """Four of each cut."""
    for layer, members in cuts:
        yield from _host_table(members, _rows_before(plan, layer))


def _sent_tables(cuts: _Cuts, sent: Sequence[torch.Tensor]) -> deque[_CutTable]:
    """``sent``: the host's tables, on the device."""
    return deque(
        _CutTable.of(members, *sent[4 * i : 4 * i + 4]) for i, (_, members) in enumerate(cuts)
    )


def rows_of(member: RequestCut) -> slice:
    """The rows of a member before its cut."""
    return slice(member.first_row, member.first_row + member.num_rows)


def together(
    members: Sequence[RequestCut], parts: Mapping[int, torch.Tensor], device: torch.device
) -> torch.Tensor:
    """[C, L] float32: by place among ``members`` the scores [rows] of some of them; padding is last."""
    longest = max(member.num_rows for member in members)
    scores = torch.full((len(members), longest), -torch.inf, device=device)
    for place, part in parts.items():
        scores[place, : len(part)] = part
    return scores


def _rows_before(plan: BatchPlan, layer: int) -> int:
    """Rows of the step before the cut before ``layer``."""
    if layer == 0:
        return plan.num_rows
    return next(s.num_rows for s in plan.segments if s.first_layer < layer <= s.end_layer)


def _host_table(
    members: Sequence[RequestCut], num_rows: int
) -> tuple[npt.NDArray[np.integer], ...]:
    """``rows``, ``stay``, ``others`` and ``limits`` of a ``_CutTable``; the last as bits, empty for None."""
    first, count, kept = np.array([(m.first_row, m.num_rows, m.kept_rows) for m in members]).T
    place = np.arange(count.max())
    rows = first[:, None] + np.minimum(place, count[:, None] - 1)
    stay = np.flatnonzero(place < kept[:, None])
    is_padding = place >= count[:, None]
    limits = np.where(is_padding, np.float32(-np.inf), np.float32(np.inf)).view(np.int32)
    if not is_padding.any():
        limits = limits[:0]
    if count.sum() == num_rows:
        return rows, stay, stay[:0], limits
    others = np.ones(num_rows, dtype=bool)
    others[rows] = False
    return rows, stay, np.flatnonzero(others), limits


def _floors_first(order: torch.Tensor, image: torch.Tensor, floors: Sequence[int]) -> torch.Tensor:
    """``order`` [rows] with text and the best of each image moved to the front."""
    # Group the ranked rows by image, text first, to see each one's place within its own.
    group, member = torch.sort(image[order] + 1, stable=True)
    limits = upload(torch.tensor([len(image), *floors]), image.device)
    sizes = torch.zeros_like(limits).scatter_add_(0, group, torch.ones_like(group))
    place = torch.arange(len(group), device=group.device) - (sizes.cumsum(0) - sizes)[group]
    sure = torch.empty_like(group)
    sure[member] = (place < limits[group]).long()
    return order[torch.sort(sure, descending=True, stable=True).indices]


def _order(scores: torch.Tensor, least: torch.Tensor, limits: torch.Tensor | None) -> torch.Tensor:
    """[..., rows] text first, then vision tokens by score: at least ``least``, at most ``limits``."""
    priority = torch.clamp(torch.nan_to_num(scores), least, limits)
    return torch.sort(priority, dim=-1, descending=True, stable=True).indices


def restore(rows: Rows, hidden: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Put ``hidden`` [rows left, width] back where its rows stood; zeros where they are gone.

    ``num_rows`` is the length of the full layout, padding included.
    """
    full = hidden.new_zeros(num_rows, hidden.shape[-1])
    return full.index_copy_(0, rows.original, hidden)
