"""Cuts of which the model says how many tokens stay: the one place that waits for the device.

The schedule's count is the most that may stay: blocks are allocated by it, and the step is planned by it
up to the cut. Behind it the step is planned anew, by the counts that were found.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from vtr_vllm.engine.worker.scoring import chosen_by_first_rank
from vtr_vllm.ranking.attention import AttentionRule
from vtr_vllm.reduction.batch import BatchPlan, RequestCut
from vtr_vllm.reduction.gather import Rows
from vtr_vllm.reduction.request import ReducedRequest
from vtr_vllm.upload import upload, wait_for


def counts_of(members: Sequence[RequestCut], scores: torch.Tensor, rows: Rows) -> Mapping[int, int]:
    """Place in the step -> vision tokens that stay, of the members of a cut that keep fewer than they may.

    ``scores`` [C, L] float32. One wait, whatever the number of members; the first tensor-parallel rank's
    counts are all ranks'.
    """
    shares = np.array([_share(member) for member in members], dtype=np.float32)
    found = rows.counts(members, scores, upload(shares, scores.device))
    counts = wait_for(chosen_by_first_rank(found))
    return {
        member.index: count
        for member, count in zip(members, counts, strict=True)
        if member.rule.is_adaptive and count < member.kept_vision
    }


def _share(member: RequestCut) -> float:
    """Of the attention, by which the count is found; 0: by what scores above 0."""
    return member.rule.mass if isinstance(member.rule, AttentionRule) else 0.0


class AdaptiveCounts:
    """What the adaptive cuts of the running requests found, by the engine's ids."""

    def __init__(self) -> None:
        self._found: dict[str, ReducedRequest] = {}
        self._untold: set[str] = set()

    def note(self, plan: BatchPlan) -> None:
        """Note what a step found, at its end."""
        adaptive = {
            member.index
            for members in plan.cuts.values()
            for member in members
            if member.rule.is_adaptive
        }
        for index in adaptive:
            request = plan.requests[index]
            assert request.reduced is not None
            self._found[request.name] = request.reduced
            self._untold.add(request.name)

    def known(
        self, name: str, computed: int, reduced: ReducedRequest | None
    ) -> ReducedRequest | None:
        """``reduced`` for a step from ``computed`` on: with the counts that were found before it."""
        if reduced is None or not reduced.is_adaptive or not reduced.parts_done(computed):
            return reduced
        return self._found[name]

    def forget(self, name: str) -> None:
        """A request is over, or runs again."""
        self._found.pop(name, None)

    def take_untold(self) -> dict[str, tuple[int, ...]]:
        """Counts by layer of the requests that nobody was told of yet."""
        untold, self._untold = self._untold, set()
        return {name: self._found[name].plan.counts for name in untold if name in self._found}
