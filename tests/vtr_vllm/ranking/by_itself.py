"""What the rules by attention give one request by itself: what the engine's batches are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vtr_vllm.ranking import RankInputs, RankRule
from vtr_vllm.ranking.attention import AttentionRule
from vtr_vllm.ranking.probabilities import CHUNK, TILE_BYTES, received_together
from vtr_vllm.ranking.request_rule import RequestRule
from vtr_vllm.upload import upload


@dataclass(frozen=True)
class Attention:
    """Queries and keys of one request at a rank layer, on this rank's heads."""

    query: torch.Tensor
    """[rows, heads, head_dim]"""
    key: torch.Tensor
    """[prefix + rows, kv_heads, head_dim]: cached or earlier keys first, then this step's."""
    prefix: int
    """Keys that stand before this step's rows."""
    scale: float
    combine: Callable[[torch.Tensor, str], torch.Tensor]
    """Merge a per-rank aggregate over heads across tensor-parallel ranks: (x, "mean"|"max")."""
    unrotated: Callable[[], Attention]
    """The same without rotary positions."""
    turn: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    """Takes rotary positions out of some neighbours, by their place among the keys; None: leaves them."""

    def floats(self, vectors: torch.Tensor, place: int) -> torch.Tensor:
        """Neighbours of ``query`` or ``key`` [n, heads, head_dim] in float32; ``place`` of the first
        among the keys."""
        return vectors.float() if self.turn is None else self.turn(vectors, place)


@dataclass(frozen=True, kw_only=True)
class Given(RankInputs):
    """One request at one cut, with what a rule by attention looks at."""

    prompt_rows: int
    """Rows of the prompt; generated tokens stand behind them."""
    instruction_rows: int
    """The last of them: text behind the last vision token."""
    attention: Attention | None = None


def score(rule: RankRule, given: Given) -> torch.Tensor:
    """Scores [rows] of a request by itself, by a rule of any kind."""
    if isinstance(rule, RequestRule):
        return rule.score(given)
    assert isinstance(rule, AttentionRule)
    attention = given.attention
    if not rule.rope:
        attention = attention.unrotated()
    if not rule.by_visible:
        asking = rule.asking(given.prompt_rows, given.instruction_rows, given.vision_rows)
        return attention_received(
            given,
            attention,
            torch.from_numpy(asking),
            rule.heads,
            weights=rule.head_weights(),
            share=rule.shares(asking),
            sees_itself=rule.sees_itself,
        )
    places = given.vision_places()
    asking = places[rule.asking(given.vision_rows, 0, given.vision_rows)]
    received = attention_received(given, attention, asking, rule.heads, weights=rule.head_weights())
    rows = torch.arange(len(received))
    return received * len(asking) / (asking[None] >= rows[:, None]).sum(1).clamp(min=1)


def attention_received(
    inputs: Given,
    attention: Attention,
    asking: torch.Tensor,
    heads: str,
    tile_bytes: int = TILE_BYTES,
    chunk: int = CHUNK,
    weights: np.ndarray | None = None,
    share: np.ndarray | None = None,
    sees_itself: bool = True,
) -> torch.Tensor:
    """Mean attention that each row gets from the rows ``asking``, ascending; [rows] float32.

    ``weights`` [heads], ``share`` [asking]: as in ``received_together``; ``sees_itself``: as a rule says.
    """
    end, prefix = inputs.prompt_rows, attention.prefix
    device = attention.key.device
    asking = upload(asking, device)
    last = prefix + asking[None]

    asked = attention.floats(attention.query[:end], prefix)[asking]
    received = received_together(
        asked.unflatten(1, (attention.key.shape[1], -1)).movedim(1, 0)[:, None],
        attention.key[None, : prefix + end].movedim(2, 0),
        attention.scale,
        heads,
        attention.combine,
        last=last,
        itself=None if sees_itself else last,
        weights=None if weights is None else upload(torch.from_numpy(weights), device),
        share=None if share is None else upload(torch.from_numpy(share), device)[None],
        keys_in_float=lambda part, place: attention.floats(part[:, 0].transpose(0, 1), place)[
            None
        ].movedim(2, 0),
        tile_bytes=tile_bytes,
        chunk=chunk,
    )
    scores = received.new_zeros(len(inputs.vision))
    scores[:end] = received[0, prefix:]
    return scores
