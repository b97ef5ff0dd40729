"""Scores of a cut from those of its members, one by one."""

from collections.abc import Callable, Sequence

import torch

from vtr_vllm.reduction.batch import RequestCut
from vtr_vllm.reduction.gather import Rows, rows_of, together


def scores_by(
    score: Callable[[RequestCut, torch.Tensor], torch.Tensor],
    rows: Rows,
    members: Sequence[RequestCut],
) -> torch.Tensor:
    """[C, L] of what ``score`` makes of a member and the vision numbers [rows] of its rows."""
    parts = {place: score(cut, rows.vision[rows_of(cut)]) for place, cut in enumerate(members)}
    return together(members, parts, rows.vision.device)
