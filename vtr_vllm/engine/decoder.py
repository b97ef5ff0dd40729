"""The decoder loop with cuts.

Rules of this file: no request state, no schedule, no waiting for the device. What it needs to
know about a step is in the step's plan.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from vtr_vllm.engine.attention import Step, padded
from vtr_vllm.engine.prefix_keys import PrefixKeys
from vtr_vllm.engine.scoring import RankLayer, Scorer
from vtr_vllm.engine.timing import Timing
from vtr_vllm.engine.trace import Traces
from vtr_vllm.errors import UnsupportedModel
from vtr_vllm.reduction.gather import Rows, restore


class ReducibleDecoder:
    """The decoder of one vLLM model, which can be run layer by layer with cuts in between."""

    def __init__(self, decoder: nn.Module, num_layers: int) -> None:
        self._decoder = decoder
        self.layers = checked_layers(decoder, num_layers)
        self.attentions: list[Attention] = [layer.self_attn.attn for layer in self.layers]
        self.layer_names = [attention.layer_name for attention in self.attentions]
        self.timing = Timing()
        self.traces = Traces()
        self._prefix_keys: PrefixKeys | None = None

    def learn_key_layout(self, block_size: int) -> None:
        """Call once the KV cache is bound; ``block_size`` as the block tables count."""
        self._prefix_keys = PrefixKeys(self.attentions[0], block_size)

    def install_slots(self, step: Step, num_rows: int) -> None:
        """Put the slots of a step without cuts where vLLM's KV update looks for them."""
        context = get_forward_context()
        context.slot_mapping = {**context.slot_mapping, **padded(step.slots, num_rows)}

    def forward(
        self,
        step: Step,
        positions: torch.Tensor,
        embeddings: torch.Tensor,
        cls_attention: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run a step with cuts.

        ``positions`` [..., padded N], ``embeddings`` [padded N, hidden]; returns hidden states
        [padded N, hidden] in the row layout of the input, so that what follows needs no change.
        """
        plan = step.plan
        hidden, positions = embeddings[: plan.num_rows], positions[..., : plan.num_rows]
        residual: torch.Tensor | None = None
        get_forward_context().slot_mapping = dict(step.slots)
        rows = Rows(plan, hidden.device)
        scorer = Scorer(step, self.layers, self._prefix_keys, hidden, cls_attention)
        self.timing.begin_step(hidden.device)
        rank_layers = plan.rank_layers
        rank_layer: RankLayer | None = None
        for index, layer in enumerate(self.layers):
            if members := plan.cuts.get(index):
                with self.timing.spent("rank"):
                    scores = scorer.score_all(members, rows.vision, index - 1, rank_layer)
                with self.timing.spent("gather"):
                    chosen = rows.cut(members, lambda cut, _, of=scores: of[cut.index])
                    hidden, positions = hidden[chosen], positions[..., chosen]
                    residual = residual[chosen] if residual is not None else None
                self.traces.note(index, members, rows.vision)
            if index in rank_layers:
                with self._captured(index) as seen:
                    hidden, residual = layer(positions, hidden, residual)
                query, key = seen
                rank_layer = RankLayer(query, key, positions)
            else:
                hidden, residual = layer(positions, hidden, residual)
                rank_layer = None
        self.traces.end_step()
        hidden, _ = self._decoder.norm(hidden, residual)
        with self.timing.spent("gather"):
            return restore(rows, hidden, len(embeddings))

    @contextmanager
    def _captured(self, layer: int) -> Iterator[list[torch.Tensor]]:
        """The query and the key that a layer's attention is called with."""
        attention = self.attentions[layer]
        seen: list[torch.Tensor] = []

        def keep(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen.append(args[0].view(-1, attention.num_heads, attention.head_size))
            seen.append(args[1].view(-1, attention.num_kv_heads, attention.head_size))

        handle = attention.register_forward_pre_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()


def checked_layers(decoder: nn.Module, num_layers: int) -> list[nn.Module]:
    """The decoder's layers, all of them; raises UnsupportedModel naming what does not fit.

    The contract: ``.layers`` called as ``layer(positions, hidden, residual)`` giving (hidden,
    residual), each with ``.self_attn.attn`` (full causal attention of vLLM) and
    ``.self_attn.rotary_emb``; a final ``.norm(hidden, residual)``.
    """
    name = type(decoder).__name__
    missing = [part for part in ("layers", "norm") if not hasattr(decoder, part)]
    if missing:
        raise UnsupportedModel(f"decoder {name} has no {' and no '.join(missing)}")
    layers: list[nn.Module] = [*decoder.layers]
    if len(layers) != num_layers:
        raise UnsupportedModel(
            f"decoder {name} has {len(layers)} layers, and its configuration says {num_layers}"
        )
    for index, layer in enumerate(layers):
        reason = _why_not(layer)
        if reason:
            raise UnsupportedModel(f"layer {index} of decoder {name} {reason}")
    return layers


def _why_not(layer: nn.Module) -> str | None:
    attention = getattr(getattr(layer, "self_attn", None), "attn", None)
    if not isinstance(attention, Attention):
        return "has no self_attn.attn of vLLM's Attention"
    if not hasattr(layer.self_attn, "rotary_emb"):
        return "has no self_attn.rotary_emb"
    if attention.sliding_window is not None:
        return "uses a sliding window"
    if getattr(attention.impl, "logits_soft_cap", None):
        return "caps its attention logits"
    if getattr(attention.impl, "alibi_slopes", None) is not None:
        return "uses ALiBi"
    return None
