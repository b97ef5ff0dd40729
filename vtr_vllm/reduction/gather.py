"""Which rows of a step are still there, from cut to cut."""

from collections.abc import Callable, Sequence

import torch

from vtr_vllm.reduction.batch import BatchPlan, RequestCut

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
        self.vision = torch.from_numpy(plan.vision).to(device, non_blocking=True)
        """[rows] int64: vision-token number within its request, -1 for text."""

    def cut(self, members: Sequence[RequestCut], score: ScoreRows) -> torch.Tensor:
        """Drop rows; return the selection [rows left] int64, ascending, into the rows before."""
        device = self.original.device
        parts = []
        done = 0
        for member in members:
            end = member.first_row + member.num_rows
            vision = self.vision[member.first_row : end]
            chosen = keep_best(score(member, vision), vision, member.kept_rows)
            parts += [
                torch.arange(done, member.first_row, device=device),
                chosen + member.first_row,
            ]
            done = end
        parts.append(torch.arange(done, len(self.original), device=device))
        selection = torch.cat(parts)
        self.original = self.original[selection]
        self.vision = self.vision[selection]
        return selection


def keep_best(scores: torch.Tensor, vision: torch.Tensor, kept_rows: int) -> torch.Tensor:
    """The ``kept_rows`` rows to keep, ascending: all text, then the best vision tokens.

    ``scores`` [rows] float32, read where ``vision`` [rows] is not negative. Ties go to the
    earlier token, so that equal scores give equal results on every device.
    """
    priority = torch.where(vision >= 0, torch.nan_to_num(scores), torch.inf)
    order = torch.sort(priority, descending=True, stable=True).indices[:kept_rows]
    return order.sort().values


def restore(rows: Rows, hidden: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Put ``hidden`` [rows left, width] back where its rows stood; zeros where they are gone.

    ``num_rows`` is the length of the full layout, padding included.
    """
    full = hidden.new_zeros(num_rows, hidden.shape[-1])
    full[rows.original] = hidden
    return full
