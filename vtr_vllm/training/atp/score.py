"""How a model with ATP modules answers, on how many tokens: batches, hard decisions, forced answers.

The same decisions and logits as ``reference`` gives, one prompt at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from vtr_vllm.atp.module import AtpModules, Masking, grid_scores
from vtr_vllm.training.atp.loss import mean_keep
from vtr_vllm.training.atp.masked_attention import MaskedPass
from vtr_vllm.training.llava import Example, Llava

__all__ = ["Outcome", "outcomes", "summary"]


@dataclass(frozen=True)
class Outcome:
    """One item."""

    id: str
    kind: str | None
    right: bool
    """Whether greedy decoding says the reference answer, token for token."""
    right_unreduced: bool
    keep: float
    """The mean keep rate over all layers."""
    counts: tuple[int, ...]
    """Vision tokens behind each cut."""


@torch.no_grad()
def outcomes(
    llava: Llava, modules: AtpModules, examples: Sequence[Example], n_min: int, batch: int
) -> Iterator[Outcome]:
    """Every example with an answer, in order, ``batch`` at a time."""
    grid = grid_scores(*llava.grid).to(llava.device)
    for start in range(0, len(examples), batch):
        some = examples[start : start + batch]
        side = llava.batch(some)
        masked = MaskedPass(modules, grid, side.rows, Masking("hard", n_min=n_min))
        right, unreduced = (
            llava.answered_right(side, llava.logits(side, each)) for each in (masked, None)
        )
        behind = masked.kept[1:]
        keep = mean_keep([kept.share for kept in behind], modules.layers, llava.geometry.layers)
        counts = torch.stack([kept.alive.sum(-1) for kept in behind], -1)
        for number, example in enumerate(some):
            yield Outcome(
                example.item.id,
                example.item.kind,
                bool(right[number]),
                bool(unreduced[number]),
                float(keep[number]),
                tuple(counts[number].tolist()),
            )


def summary(found: Sequence[Outcome]) -> dict[str, Any] | None:
    """Means over outcomes, and by kind where items have one; None of none."""
    if not found:
        return None
    kinds: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in found:
        if outcome.kind is not None:
            kinds[outcome.kind].append(outcome)
    return {
        **_means(found),
        "kinds": {kind: _means(inside) for kind, inside in sorted(kinds.items())},
    }


def _means(found: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "n": len(found),
        "right": fmean(outcome.right for outcome in found),
        "right_unreduced": fmean(outcome.right_unreduced for outcome in found),
        "mean_keep": fmean(outcome.keep for outcome in found),
        "counts": [fmean(behind) for behind in zip(*(o.counts for o in found), strict=True)],
    }
