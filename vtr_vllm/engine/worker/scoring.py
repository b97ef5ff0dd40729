"""Gives the rank rules what they look at: queries and keys of a rank layer, embeddings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    get_tp_group,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)

from vtr_vllm.engine.worker.attention import Step
from vtr_vllm.engine.worker.image_rows import ImageRows, images_alike, is_image
from vtr_vllm.engine.worker.modules import Modules
from vtr_vllm.engine.worker.prefix_keys import PrefixKeys
from vtr_vllm.engine.worker.rank_groups import RankGroup, rank_groups
from vtr_vllm.engine.worker.rope import unrotate
from vtr_vllm.ranking import Need, RankInputs
from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.judged_rule import JudgedRule
from vtr_vllm.ranking.probabilities import (
    BATCH_TILE_BYTES,
    TILE_BYTES,
    Floats,
    plain_floats,
    received_together,
)
from vtr_vllm.ranking.request_rule import RequestRule
from vtr_vllm.reduction.batch import RequestCut
from vtr_vllm.reduction.gather import Rows, rows_of, together
from vtr_vllm.upload import upload

States = Callable[[torch.Tensor | slice], torch.Tensor]
"""Rows before the cut -> [rows, hidden] of the residual stream there."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a group's rank layer was given."""

    group: RankGroup
    query: torch.Tensor
    """[kv_heads, C * Q, heads of each * head_dim]"""
    key: torch.Tensor | None
    """[kv_heads, C * L, head_dim]; None: all are read back."""
    value: torch.Tensor | None
    """[C, kv_heads, head_dim] of each request's last query, for modules; None: they do not look here."""


class Scorer:
    """Scores the requests of one step, from cut to cut."""

    def __init__(
        self,
        step: Step,
        blocks: Sequence[nn.Module],
        prefix_keys: PrefixKeys | None,
        embeddings: torch.Tensor,
        cls_attention: torch.Tensor | None,
        registers: int = 0,
        modules: Modules | None = None,
    ) -> None:
        self._step = step
        self._blocks = blocks
        """Per layer: the module with ``attn`` and ``rotary_emb``."""
        self._prefix_keys = prefix_keys
        self._embeddings = embeddings
        """[N, hidden] input embeddings, before any cut."""
        self._cls_attention = cls_attention
        """[N] attention of the vision tower's CLS token, read at vision rows."""
        self._registers = registers
        """How many of each image's tokens are registers; they are its last ones."""
        self._modules = modules
        self._previous: dict[tuple[int, int], torch.Tensor] = {}
        """Request of the step, first vision token of its part -> [n_vision] scores of its last cut."""
        self._seen: list[_Seen] = []
        """Of the rank layer that ran last."""
        self._rounds = prefix_keys is not None and prefix_keys.rounds
        self._groups: Mapping[int, Sequence[RankGroup]] = {}
        self.follow(-1)

    def follow(self, layer: int) -> None:
        """Go on by the step's plan, which may have other counts behind the cut before ``layer``."""
        keys = self._prefix_keys
        cuts = {at: members for at, members in self._step.plan.cuts.items() if at > layer}
        if keys is not None:
            rows, device = self._step.plan.num_rows, self._embeddings.device
            self._groups = rank_groups(cuts, rows, keys.block_size, keys.rounds, device)

    def look(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take what the cut behind ``layer`` needs of what its attention gets.

        ``query`` [rows, heads, head_dim], ``key`` and ``value`` [rows, kv_heads, head_dim], before attention
        may write over them.
        """
        assert self._prefix_keys is not None, "ranked before the cache is bound"
        self._seen.clear()
        for group in self._groups.get(layer + 1, ()):
            keys = key.transpose(0, 1)
            queries = query.view(len(query), len(keys), -1).transpose(0, 1)
            asked = queries.index_select(1, group.asking)
            own = None if self._rounds else keys.index_select(1, group.rows)
            last = None
            if group.shows_values:
                last = value.index_select(0, group.asking.view(len(group.places), -1)[:, -1])
            self._seen.append(_Seen(group, asked, own, last))

    def score_all(
        self, members: Sequence[RequestCut], rows: Rows, layer: int, states: States
    ) -> torch.Tensor:
        """Scores [members, most rows of one] float32 of the cut behind ``layer``."""
        seen, self._seen = self._seen, []
        parts: list[tuple[torch.Tensor | None, torch.Tensor]] = []
        for alike in images_alike(members):
            images = ImageRows.of(members, alike, rows)
            parts.append((images.index, self._score_images(images, states)))
        judged = [place for place, cut in enumerate(members) if isinstance(cut.rule, JudgedRule)]
        if judged:
            parts.append(self._judge(members, judged, seen, layer, rows))
        for each in seen:
            if each.group.places[0] in judged:
                continue
            index = None if len(each.group.places) == len(members) else each.group.index.long()
            parts.append((index, self._received(each, layer, rows)))
        if len(parts) == 1 and parts[0][0] is None:
            return self._keep(members, rows, parts[0][1])
        singles = {
            place: self._score(cut, cut.rule, rows, states)
            for place, cut in enumerate(members)
            if isinstance(cut.rule, RequestRule) and not is_image(cut)
        }
        scores = together(members, singles, rows.vision.device)
        for index, part in parts:
            assert index is not None, "one of several parts is all of them"
            scores[:, : part.shape[1]].index_copy_(0, index, part)
        return self._keep(members, rows, scores)

    def _keep(
        self, members: Sequence[RequestCut], rows: Rows, scores: torch.Tensor
    ) -> torch.Tensor:
        """Note ``scores`` for later rules that need them."""
        for place, cut in enumerate(members):
            plan = cut.part.plan
            if any(Need.PREVIOUS in rule.needs for rule in plan.rules):
                own = scores[place, : cut.num_rows]
                vision = rows.vision[rows_of(cut)]
                self._previous[_key(cut)] = _by_token(own, vision, plan.n_vision)
        return scores

    def _judge(
        self,
        members: Sequence[RequestCut],
        judged: Sequence[int],
        seen: Sequence[_Seen],
        layer: int,
        rows: Rows,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Places of the members that modules score, None: all; and their scores [A, L]."""
        assert self._modules is not None, "admitted without modules"
        length = rows.of_members.shape[1]
        rule = members[judged[0]].rule
        assert isinstance(rule, JudgedRule)
        looks = rows.vision.new_zeros(len(rule.looks), len(members), length, dtype=torch.float32)
        values: torch.Tensor | None = None
        for each in seen:
            group = each.group
            if group.places[0] not in judged:
                continue
            index, received = group.index.long(), self._received(each, layer, rows)
            looks[group.look, :, : received.shape[1]].index_copy_(0, index, received)
            if each.value is not None:
                if values is None:
                    values = each.value.new_zeros(len(members), *each.value.shape[1:])
                values.index_copy_(0, index, each.value)
        assert values is not None, "each look is at all of them"
        tokens = rows.vision[rows.of_members]
        if len(judged) == len(members):
            return None, self._modules.score(layer + 1, tokens, looks, values)
        own = upload(torch.tensor(judged), tokens.device)
        found = self._modules.score(layer + 1, tokens[own], looks[:, own], values[own])
        return own, found

    def _received(self, seen: _Seen, layer: int, rows: Rows) -> torch.Tensor:
        """Scores [C, L] of a group."""
        group, query, key = seen.group, seen.query, seen.key
        requests = len(group.places)
        kept = None if key is None else key.unflatten(1, (requests, -1))
        if group.stored is not None:
            stored = self._stored_of(group, layer).unflatten(1, (requests, -1))
            kept = stored if kept is None else torch.cat([stored, kept], dim=2)
        assert kept is not None
        attention: Any = self._blocks[layer].attn
        length, width = len(group.rows) // requests, kept.shape[-1]
        queries, keys = (
            (plain_floats, plain_floats)
            if group.rule.rope
            else self._unrotating(group, layer, rows)
        )
        query = query.view(len(query), requests, -1, query.shape[-1] // width, width)
        heads = len(query) * query.shape[3]
        received = received_together(
            query,
            kept,
            attention.impl.scale,
            group.rule.heads,
            combine_heads,
            first=group.first,
            last=group.last,
            itself=group.itself,
            bias=group.bias,
            share=group.share,
            weights=_own_heads(group.weights, heads),
            queries_in_float=queries,
            keys_in_float=keys,
            # Little more than one request of this length may take, all of whose rows ask.
            tile_bytes=min(TILE_BYTES, max(BATCH_TILE_BYTES, 4 * heads * length * kept.shape[2])),
        )
        received = received[:, -length:]
        return received if group.of_each is None else received * group.of_each

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
            where = asking[..., place : place + part.shape[2]]
            flat = part.movedim(0, 2)
            turned = unrotate(rotary, where.flatten(-2), flat.flatten(2, 3).flatten(0, 1))
            return turned.view(flat.shape).movedim(2, 0)

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

    def _score_images(self, images: ImageRows, states: States) -> torch.Tensor:
        """Scores [U, rows of each] float32 of images that are cut alike."""
        needs, cuts = images.rule.needs, images.cuts
        inputs = ImageInputs(
            tokens=images.tokens,
            size=cuts[0].part.plan.n_vision,
            grid=cuts[0].part.units[0].grid,
            seeds=[cut.part.units[0].seed for cut in cuts],
            registers=self._registers,
            embeddings=self._of_images(cuts, self._embeddings)
            if Need.EMBEDDINGS in needs
            else None,
            states=states(images.rows.reshape(-1)).unflatten(0, images.rows.shape)
            if Need.STATES in needs
            else None,
            cls_attention=self._of_images(cuts, self._cls_attention)
            if Need.TOWER in needs
            else None,
        )
        return images.spread(images.rule.score_images(inputs))

    def _of_images(self, cuts: Sequence[RequestCut], values: torch.Tensor | None) -> torch.Tensor:
        return torch.stack([self._of_tokens(cut, values) for cut in cuts])

    def _score(
        self, cut: RequestCut, rule: RequestRule, rows: Rows, states: States
    ) -> torch.Tensor:
        """Scores [rows of the member] float32, the same on every tensor-parallel rank."""
        needs, part = rule.needs, cut.part
        own = rows_of(cut)
        inputs = RankInputs(
            vision=rows.vision[own],
            image_sizes=part.image_sizes,
            vision_rows=cut.vision_before,
            seeds=[unit.seed for unit in part.units],
            grids=[unit.grid for unit in part.units],
            registers=self._registers,
            embeddings=self._of_tokens(cut, self._embeddings) if Need.EMBEDDINGS in needs else None,
            cls_attention=self._of_tokens(cut, self._cls_attention)
            if Need.TOWER in needs
            else None,
            states=states(own) if Need.STATES in needs else None,
            previous=self._previous[_key(cut)] if Need.PREVIOUS in needs else None,
        )
        return rule.score(inputs)

    def _of_tokens(self, cut: RequestCut, values: torch.Tensor | None) -> torch.Tensor:
        assert values is not None
        places = cut.vision_rows
        if places[-1] - places[0] == len(places) - 1:
            return values[places[0] : places[-1] + 1]
        return values[upload(places, values.device)]

    def _band(self, layer: int) -> int:
        return next(
            s.band for s in self._step.plan.segments if s.first_layer <= layer < s.end_layer
        )


def _key(cut: RequestCut) -> tuple[int, int]:
    return cut.index, cut.part.first


def _own_heads(weights: torch.Tensor | None, count: int) -> torch.Tensor | None:
    """Of all heads' weights those of this tensor-parallel rank's ``count`` heads."""
    if weights is None:
        return None
    first = get_tensor_model_parallel_rank() * count
    return weights[first : first + count]


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
