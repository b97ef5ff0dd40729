"""Gives the rank rules what they look at: queries and keys of a rank layer, embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from vtr_vllm.engine.worker.rank_groups import RankGroup, rank_groups
from vtr_vllm.engine.worker.rope import unrotate
from vtr_vllm.ranking import Attention, Need, RankInputs
from vtr_vllm.ranking.attention import AttentionRule
from vtr_vllm.ranking.probabilities import (
    BATCH_TILE_BYTES,
    TILE_BYTES,
    Floats,
    plain_floats,
    received_together,
)
from vtr_vllm.reduction.batch import RequestCut
from vtr_vllm.reduction.gather import Rows, rows_of, together
from vtr_vllm.upload import upload


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
        self._seen: list[tuple[RankGroup, torch.Tensor, torch.Tensor | None]] = []
        """Of the rank layer that ran last: queries [C * Q, heads, head_dim] of each group, and keys
        [kv_heads, C * L, head_dim] unless they are read back."""
        self._whole: tuple[torch.Tensor, torch.Tensor] | None = None
        """Its query and key, for rules that take attention in their own way."""
        self._rounds = prefix_keys is not None and prefix_keys.rounds
        self._groups: Mapping[int, Sequence[RankGroup]] = {}
        if prefix_keys is not None:
            self._groups = rank_groups(
                step.plan,
                prefix_keys.block_size,
                prefix_keys.rounds,
                embeddings.device,
            )

    def look(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> None:
        """Take what the cut behind ``layer`` needs of what its attention gets.

        ``query`` [rows, heads, head_dim] and ``key`` [rows, kv_heads, head_dim], before attention may
        write over them.
        """
        assert self._prefix_keys is not None, "ranked before the cache is bound"
        self._seen.clear()
        for group in self._groups.get(layer + 1, ()):
            asked = query.index_select(0, group.asking)
            keys = key.transpose(0, 1)
            own = None if self._rounds else keys.index_select(1, group.rows)
            self._seen.append((group, asked, own))
        self._whole = None
        if any(_needs_whole(cut) for cut in self._step.plan.cuts[layer + 1]):
            self._whole = query.clone(), key.clone()

    def score_all(self, members: Sequence[RequestCut], rows: Rows, layer: int) -> torch.Tensor:
        """Scores [members, most rows of one] float32 of the cut behind ``layer``."""
        seen, self._seen = self._seen, []
        if len(seen) == 1 and len(seen[0][0].places) == len(members):
            return self._keep(members, rows, self._received(*seen[0], layer, rows))
        parts = {}
        for place, cut in enumerate(members):
            if not isinstance(cut.rule, AttentionRule):
                parts[place] = self._score(cut, rows.vision[rows_of(cut)], layer, rows)
        scores = together(members, parts, rows.vision.device)
        for group, asked, own in seen:
            received = self._received(group, asked, own, layer, rows)
            scores[:, : received.shape[1]].index_copy_(0, group.index.long(), received)
        return self._keep(members, rows, scores)

    def _keep(
        self, members: Sequence[RequestCut], rows: Rows, scores: torch.Tensor
    ) -> torch.Tensor:
        """Note ``scores`` for later rules that need them."""
        for place, cut in enumerate(members):
            request = cut.request
            if any(Need.PREVIOUS in rule.needs for rule in request.plan.rules):
                own = scores[place, : cut.num_rows]
                vision = rows.vision[rows_of(cut)]
                self._previous[cut.index] = _by_token(own, vision, request.plan.n_vision)
        return scores

    def _received(
        self,
        group: RankGroup,
        query: torch.Tensor,
        key: torch.Tensor | None,
        layer: int,
        rows: Rows,
    ) -> torch.Tensor:
        """Scores [C, L] of a group; ``key`` [kv_heads, C * L, head_dim], None: all are read back."""
        requests = len(group.places)
        kept = None if key is None else key.unflatten(1, (requests, -1))
        if group.stored is not None:
            stored = self._stored_of(group, layer).unflatten(1, (requests, -1))
            kept = stored if kept is None else torch.cat([stored, kept], dim=2)
        assert kept is not None
        attention: Any = self._blocks[layer].attn
        length = len(group.rows) // requests
        queries, keys = (
            (plain_floats, plain_floats)
            if group.rule.rope
            else self._unrotating(group, layer, rows)
        )
        received = received_together(
            query.unflatten(0, (requests, -1)),
            kept,
            attention.impl.scale,
            group.rule.heads,
            combine_heads,
            first=group.first,
            last=group.last,
            share=group.share,
            queries_in_float=queries,
            keys_in_float=keys,
            # Little more than one request of this length may take, all of whose rows ask.
            tile_bytes=min(
                TILE_BYTES, max(BATCH_TILE_BYTES, 4 * query.shape[1] * length * kept.shape[2])
            ),
        )
        return received[:, -length:]

    def _unrotating(self, group: RankGroup, layer: int, rows: Rows) -> tuple[Floats, Floats]:
        """What takes rotary positions out of a group's queries and keys."""
        rotary, requests = self._blocks[layer].rotary_emb, len(group.places)
        asking, own = (
            rows.positions.index_select(-1, which).unflatten(-1, (requests, -1))
            for which in (group.asking, group.rows)
        )
        if group.before is not None:
            before = group.before.view(requests, -1).expand(*own.shape[:-1], -1)
            own = torch.cat([before, own], dim=-1)

        def queries(part: torch.Tensor, place: int) -> torch.Tensor:
            where = asking[..., place : place + part.shape[1]]
            return unrotate(rotary, where.flatten(-2), part.flatten(0, 1)).view(part.shape)

        def keys(part: torch.Tensor, place: int) -> torch.Tensor:
            where = own[..., place : place + part.shape[2]]
            flat = unrotate(rotary, where.flatten(-2), part.flatten(1, 2).transpose(0, 1))
            return flat.unflatten(0, (requests, -1)).movedim(2, 0)

        return queries, keys

    def _stored_of(self, group: RankGroup, layer: int) -> torch.Tensor:
        """[kv_heads, C * S, head_dim] keys from the KV cache."""
        assert self._prefix_keys is not None
        assert group.requests is not None
        assert group.stored is not None
        table = self._step.bands.tables[self._band(layer)]
        blocks = table.index_select(0, group.requests)[:, : group.blocks].reshape(-1)
        count = len(blocks) * self._prefix_keys.block_size
        keys = self._prefix_keys.read(self._blocks[layer].attn, blocks, count)
        return keys.transpose(0, 1).index_select(1, group.stored)

    def _score(self, cut: RequestCut, vision: torch.Tensor, layer: int, rows: Rows) -> torch.Tensor:
        """Scores [rows of the request] float32, the same on every tensor-parallel rank."""
        needs, request = cut.rule.needs, cut.request
        inputs = RankInputs(
            vision=vision,
            prompt_rows=cut.prompt_rows,
            instruction_rows=request.instruction_len,
            image_sizes=request.image_sizes,
            seed=request.seed,
            attention=self._attention(cut, layer, rows) if Need.ATTENTION in needs else None,
            embeddings=self._of_tokens(cut, self._embeddings) if Need.EMBEDDINGS in needs else None,
            cls_attention=self._of_tokens(cut, self._cls_attention)
            if Need.TOWER in needs
            else None,
            previous=self._previous[cut.index] if Need.PREVIOUS in needs else None,
        )
        return cut.rule.score(inputs)

    def _of_tokens(self, cut: RequestCut, values: torch.Tensor | None) -> torch.Tensor:
        assert values is not None
        return values[upload(cut.vision_rows, values.device)]

    def _attention(self, cut: RequestCut, layer: int, rows: Rows) -> Attention:
        assert self._whole is not None
        assert self._prefix_keys is not None
        attention: Any = self._blocks[layer].attn
        query, key = (whole[rows_of(cut)] for whole in self._whole)
        prefix = self._stored(cut, layer, cut.computed) if cut.computed else key[:0]
        if self._prefix_keys.rounds:
            key = self._stored(cut, layer, cut.computed + cut.num_rows)[cut.computed :]

        def unrotated() -> Attention:
            rotary, positions = self._blocks[layer].rotary_emb, rows.positions[..., rows_of(cut)]
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
        blocks = self._step.bands.tables[self._band(layer)][cut.index]
        return self._prefix_keys.read(self._blocks[layer].attn, blocks, count)

    def _band(self, layer: int) -> int:
        return next(
            s.band for s in self._step.plan.segments if s.first_layer <= layer < s.end_layer
        )


def _needs_whole(cut: RequestCut) -> bool:
    return cut.rule.needs_attention and not isinstance(cut.rule, AttentionRule)


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
