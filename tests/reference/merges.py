"""What dropped tokens add to kept ones, one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def merged(
    rows: dict[int, Tensor], kept: list[int], dropped: list[int], scores: Tensor, kind: str
) -> dict[int, Tensor]:
    """The kept tokens' rows with the dropped ones' added; ``rows`` by token ``[hidden]``."""
    by_rank = sorted(dropped, key=lambda token: -float(scores[token]))
    sums = {token: rows[token].clone() for token in kept}
    mass = dict.fromkeys(kept, 1.0)
    if kind == "scored":
        mass = {token: float(scores[token]) for token in kept}
        sums = {token: mass[token] * rows[token] for token in kept}
    for place, token in enumerate(by_rank):
        likeness = {k: float(cosine_similarity(rows[k], rows[token], dim=0)) for k in kept}
        receiver = max(kept, key=lambda k: (likeness[k], float(scores[k])))
        weight = 1.0
        if kind == "scored":
            weight = float(scores[token])
        elif kind == "tail":
            receiver = min(reversed(kept), key=lambda k: float(scores[k]))
            weight = place + 2.0
        elif (kind == "recycled" and place >= 0.3 * len(by_rank)) or kind == "neighbours":
            continue
        sums[receiver] += weight * rows[token]
        mass[receiver] += weight
    if kind == "neighbours":
        for receiver in kept:
            near = sorted(
                by_rank, key=lambda t: -float(cosine_similarity(rows[receiver], rows[t], dim=0))
            )
            for token in near[:32]:
                sums[receiver] += float(scores[token]) * rows[token]
        return sums
    return {token: sums[token] / mass[token] for token in kept}


def merge_rows(
    rows: Tensor,
    vision: Tensor,
    groups: list[tuple[list[int], list[int]]],
    scores: Tensor,
    kind: str,
) -> Tensor:
    """``rows`` [A, hidden] with the kept tokens of each group (kept, dropped) changed.

    ``vision``: the row of each vision token, -1 where it is gone.
    """
    rows = rows.clone()
    for kept, dropped in groups:
        if kept and dropped:
            own = {token: rows[int(vision[token])].clone() for token in [*kept, *dropped]}
            for token, row in merged(own, kept, dropped, scores, kind).items():
                rows[int(vision[token])] = row
    return rows


def rows_of_tokens(positions: Tensor, vision: Tensor) -> Tensor:
    """The row of each vision token among rows at ``positions``; -1 where it is gone."""
    place = {int(position): row for row, position in enumerate(positions)}
    return torch.tensor([place.get(int(position), -1) for position in vision])
