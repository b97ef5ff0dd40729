"""Which rows of a step are still there, from cut to cut."""

from collections.abc import Callable, Sequence

import torch

from vtr_vllm.reduction.batch import BatchPlan, RequestCut
from vtr_vllm.upload import upload

ScoreRows = Callable[[RequestCut, torch.Tensor], torch.Tensor]
"""(cut, vision numbers [rows of the request]) -> scores [rows of the request], float32."""


class Rows:
    """The rows left of one reduced prefill step, on the device.

    No method waits for the device: every size is known on the host.
    """

    def __init__(self, plan: BatchPlan, device: torch.device) -> None:
        assert plan.vision is not None
        self.original = torch.arange(plan.num_rows, device=device)
        """[rows] int64: where each row stood before any cut."""
        self.vision = upload(plan.vision, device)
        """[rows] int64: vision-token number within its request, -1 for text."""
        self._image: torch.Tensor | None = None
        if plan.image is not None:
            self._image = upload(plan.image, device)

    def cut(
        self,
        members: Sequence[RequestCut],
        score: ScoreRows,
        agree: Callable[[torch.Tensor], torch.Tensor] = lambda selection: selection,
    ) -> torch.Tensor:
        """Drop rows; return the selection [rows left] int64, ascending, into the rows before.

        ``agree`` makes of the selection of one rank that of all.
        """
        device = self.original.device
        parts = []
        done = 0
        for member in members:
            end = member.first_row + member.num_rows
            vision = self.vision[member.first_row : end]
            scores = score(member, vision)
            if member.floors is None:
                chosen = keep_best(scores, vision, member.kept_rows)
            else:
                assert self._image is not None
                image = self._image[member.first_row : end]
                chosen = keep_best_of_each(scores, image, member.kept_rows, member.floors)
            parts += [
                torch.arange(done, member.first_row, device=device),
                chosen + member.first_row,
            ]
            done = end
        parts.append(torch.arange(done, len(self.original), device=device))
        selection = agree(torch.cat(parts))
        self.original = self.original[selection]
        self.vision = self.vision[selection]
        if self._image is not None:
            self._image = self._image[selection]
        return selection


def keep_best(scores: torch.Tensor, vision: torch.Tensor, kept_rows: int) -> torch.Tensor:
    """The ``kept_rows`` rows to keep, ascending: all text, then the best vision tokens.

    ``scores`` [rows] float32, read where ``vision`` [rows] is not negative. Ties go to the
    earlier token, so that equal scores give equal results on every device.
    """
    return _order(scores, vision)[:kept_rows].sort().values


def keep_best_of_each(
    scores: torch.Tensor, image: torch.Tensor, kept_rows: int, floors: Sequence[int]
) -> torch.Tensor:
    """``keep_best``, but first the ``floors[i]`` best of each image i that are left of it.

    ``image`` [rows] has the image of each row, -1 for text. No image may have fewer rows than
    its floor, and text and floors may come to no more than ``kept_rows``.
    """
    order = _order(scores, image)
    # Group the ranked rows by image, text first, to see each one's place within its own.
    group, member = torch.sort(image[order] + 1, stable=True)
    limits = upload(torch.tensor([len(image), *floors]), image.device)
    sizes = torch.zeros_like(limits).scatter_add_(0, group, torch.ones_like(group))
    place = torch.arange(len(group), device=group.device) - (sizes.cumsum(0) - sizes)[group]
    sure = torch.empty_like(group)
    sure[member] = (place < limits[group]).long()
    return order[torch.sort(sure, descending=True, stable=True).indices[:kept_rows]].sort().values


def _order(scores: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """[rows] text first, then vision tokens by score; ``number`` is negative for text."""
    priority = torch.where(number >= 0, torch.nan_to_num(scores), torch.inf)
    return torch.sort(priority, descending=True, stable=True).indices


def restore(rows: Rows, hidden: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Put ``hidden`` [rows left, width] back where its rows stood; zeros where they are gone.

    ``num_rows`` is the length of the full layout, padding included.
    """
    full = hidden.new_zeros(num_rows, hidden.shape[-1])
    full[rows.original] = hidden
    return full
