"""Gives the rank rules what they look at: queries and keys of a rank layer, embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    get_tp_group,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)

from vtr_vllm.engine.worker.attention import Step
from vtr_vllm.engine.worker.prefix_keys import PrefixKeys
from vtr_vllm.engine.worker.rope import unrotate
from vtr_vllm.ranking import Attention, Need, RankInputs
from vtr_vllm.reduction.batch import RequestCut
from vtr_vllm.upload import upload


@dataclass(frozen=True, eq=False)
class RankLayer:
    """What the attention of one rank layer got; rows as in the layout of that layer."""

    query: torch.Tensor
    """[rows, heads, head_dim]"""
    key: torch.Tensor
    """[rows, kv_heads, head_dim]"""
    positions: torch.Tensor
    """[..., rows]"""


class Scorer:
    """Scores the requests of one step, from cut to cut."""

    def __init__(
        self,
        step: Step,
        blocks: Sequence[nn.Module],
        prefix_keys: PrefixKeys | None,
        embeddings: torch.Tensor,
        cls_attention: torch.Tensor | None,
    ) -> None:
        self._step = step
        self._blocks = blocks
        """Per layer: the module with ``attn`` and ``rotary_emb``."""
        self._prefix_keys = prefix_keys
        self._embeddings = embeddings
        """[N, hidden] input embeddings, before any cut."""
        self._cls_attention = cls_attention
        """[N] attention of the vision tower's CLS token, read at vision rows."""
        self._previous: dict[int, torch.Tensor] = {}
        """Request of the step -> [n_vision] scores of its last cut."""

    def score_all(
        self,
        members: Sequence[RequestCut],
        vision: torch.Tensor,
        layer: int,
        rank_layer: RankLayer | None,
    ) -> dict[int, torch.Tensor]:
        """The scores of a cut by request of the step; ``vision`` [rows of the step]."""
        return {
            cut.index: self.score(
                cut, vision[cut.first_row : cut.first_row + cut.num_rows], layer, rank_layer
            )
            for cut in members
        }

    def score(
        self, cut: RequestCut, vision: torch.Tensor, layer: int, rank_layer: RankLayer | None
    ) -> torch.Tensor:
        """Scores [rows of the request] float32, the same on every tensor-parallel rank.

        ``layer`` is the rank layer's index and ``rank_layer`` what was captured there, None where
        no rule of the cut needs attention.
        """
        needs, request = cut.rule.needs, cut.request
        inputs = RankInputs(
            vision=vision,
            prompt_rows=cut.prompt_rows,
            instruction_rows=request.instruction_len,
            image_sizes=request.image_sizes,
            seed=request.seed,
            attention=self._attention(cut, layer, rank_layer) if Need.ATTENTION in needs else None,
            embeddings=self._of_tokens(cut, self._embeddings) if Need.EMBEDDINGS in needs else None,
            cls_attention=self._of_tokens(cut, self._cls_attention)
            if Need.TOWER in needs
            else None,
            previous=self._previous[cut.index] if Need.PREVIOUS in needs else None,
        )
        scores = cut.rule.score(inputs)
        if any(Need.PREVIOUS in rule.needs for rule in request.plan.rules):
            self._previous[cut.index] = _by_token(scores, vision, request.plan.n_vision)
        return scores

    def _of_tokens(self, cut: RequestCut, values: torch.Tensor | None) -> torch.Tensor:
        assert values is not None
        return values[upload(cut.vision_rows, values.device)]

    def _attention(self, cut: RequestCut, layer: int, rank_layer: RankLayer | None) -> Attention:
        assert rank_layer is not None
        assert self._prefix_keys is not None
        attention: Any = self._blocks[layer].attn
        rows = slice(cut.first_row, cut.first_row + cut.num_rows)
        query, key = rank_layer.query[rows], rank_layer.key[rows]
        prefix = self._stored(cut, layer, cut.computed) if cut.computed else key[:0]
        if self._prefix_keys.rounds:
            key = self._stored(cut, layer, cut.computed + cut.num_rows)[cut.computed :]

        def unrotated() -> Attention:
            rotary, positions = self._blocks[layer].rotary_emb, rank_layer.positions[..., rows]
            before = torch.arange(cut.computed, device=positions.device)
            places = torch.cat([before.expand(*positions.shape[:-1], -1), positions], -1)

            def turn(vectors: torch.Tensor, place: int) -> torch.Tensor:
                return unrotate(rotary, places[..., place : place + len(vectors)], vectors)

            return replace(rotated, turn=turn)

        rotated = Attention(
            query=query,
            key=torch.cat([prefix, key]),
            prefix=cut.computed,
            scale=attention.impl.scale,
            combine=combine_heads,
            unrotated=unrotated,
        )
        return rotated

    def _stored(self, cut: RequestCut, layer: int, count: int) -> torch.Tensor:
        """The first ``count`` keys [count, kv_heads, head_dim] of the request in the KV cache: what
        earlier steps, or other requests, computed, and behind it the rows of this step."""
        assert self._prefix_keys is not None
        band = next(
            s.band for s in self._step.plan.segments if s.first_layer <= layer < s.end_layer
        )
        blocks = self._step.bands.tables[band][cut.index]
        return self._prefix_keys.read(self._blocks[layer].attn, blocks, count)


def _by_token(scores: torch.Tensor, vision: torch.Tensor, n_vision: int) -> torch.Tensor:
    """Scores [rows] as [n_vision]; tokens that are gone, and so never asked for, get 0."""
    slot = torch.where(vision >= 0, vision, n_vision)
    return scores.new_zeros(n_vision + 1).scatter_(0, slot, scores)[:n_vision]


def combine_heads(merged: torch.Tensor, heads: str) -> torch.Tensor:
    """Merge over the heads of all tensor-parallel ranks, or ranks would keep different tokens."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return merged
    if heads == "max":
        return tensor_model_parallel_all_gather(merged[None], dim=0).amax(0)
    return tensor_model_parallel_all_reduce(merged) / ranks


def chosen_by_first_rank(selection: torch.Tensor) -> torch.Tensor:
    """The rows that the first tensor-parallel rank keeps, on all: one broadcast a cut.

    Merged scores are not enough: what a rule reads besides (embeddings, the tower's attention) each
    rank computed for itself, and the last bit may differ. Ranks that keep different rows would add up
    layers of different tokens.
    """
    ranks = get_tp_group()
    return selection if ranks.world_size == 1 else ranks.broadcast(selection)
