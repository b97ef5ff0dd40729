"""The decoder loop with cuts.

Rules of this file: no request state, no schedule, no waiting for the device but for adaptive cuts
(``adaptive_cuts``). What it needs to know about a step is in the step's plan.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.sequence import IntermediateTensors

from vtr_vllm.engine.common.supported_models import SUPPORTED_DECODERS
from vtr_vllm.engine.worker.adaptive_cuts import AdaptiveCounts, counts_of
from vtr_vllm.engine.worker.attention import Step, padded
from vtr_vllm.engine.worker.compiled import LayerRunner
from vtr_vllm.engine.worker.layer_halves import halves_of
from vtr_vllm.engine.worker.layer_names import LayerNames
from vtr_vllm.engine.worker.lora import LoRARows
from vtr_vllm.engine.worker.merging import Merged
from vtr_vllm.engine.worker.modules import Modules
from vtr_vllm.engine.worker.prefix_keys import PrefixKeys
from vtr_vllm.engine.worker.scoring import Scorer, chosen_by_first_rank
from vtr_vllm.engine.worker.timing import Timing
from vtr_vllm.engine.worker.trace import Traces
from vtr_vllm.errors import UnsupportedModel
from vtr_vllm.ranking.pairs import compile_kernels
from vtr_vllm.reduction.gather import Rows, restore


class ReducibleDecoder:
    """The decoder of one vLLM model, which can be run layer by layer with cuts in between."""

    def __init__(
        self,
        decoder: nn.Module,
        num_layers: int,
        run_layer: LayerRunner,
        registers: int = 0,
        modules: Modules | None = None,
    ) -> None:
        """``registers``: how many of each image's tokens are learned ones, its last."""
        self._decoder = decoder
        self._registers = registers
        self._modules = modules
        self._run_layer = run_layer
        self.layers = checked_layers(decoder, num_layers)
        self._attention_blocks = [_attention_block(layer) for layer in self.layers]
        self.attentions: list[Attention] = [block.attn for block in self._attention_blocks]
        self.layer_names = [attention.layer_name for attention in self.attentions]
        self._names = LayerNames(self.layer_names)
        self.timing = Timing()
        self.traces = Traces()
        self.adaptive_counts = AdaptiveCounts()
        self._halves: list[tuple[nn.Module, nn.Module]] = []
        """By layer: up to attention, and behind it."""
        self._prefix_keys: PrefixKeys | None = None
        self._lora_rows = LoRARows(None)

    def warm_up(self, block_size: int) -> None:
        """Call once the KV cache is bound; ``block_size`` as the block tables count.

        Raises ConfigurationError when the layers cannot be compiled, and are to be.
        """
        if not self._halves:  # vLLM may bind a small cache first, to see what its graphs take
            self._halves = [halves_of(layer) for layer in self.layers]
            heads, tails = zip(*self._halves, strict=True)
            given = self.attentions[0].num_heads * self.attentions[0].head_size_v
            self._run_layer.warm_up([*self.layers, *heads], tails, given)
            compile_kernels(next(self.layers[0].parameters()).device)
        self._prefix_keys = PrefixKeys(self.attentions[0], block_size)
        self._lora_rows = LoRARows.of(self.layers)

    def counters(self) -> dict[str, float]:
        """Those of ``Timing``, and ``uncompiled_layers``: runs of a layer that no graph fitted."""
        return {**self.timing.counters(), "uncompiled_layers": self._run_layer.misses}

    def embed(self, input_ids: torch.Tensor | None) -> torch.Tensor:
        """[N, hidden] of a step that vLLM runs on token ids."""
        embedded: torch.Tensor = self._decoder.embed_input_ids(input_ids)
        return embedded

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
        deepstack_input_embeds: IntermediateTensors | None = None,
    ) -> torch.Tensor:
        """Run a step with cuts.

        ``positions`` [..., padded N], ``embeddings`` [padded N, hidden]; ``deepstack_input_embeds``
        as Qwen3-VL has them: the i-th [padded N, hidden] is added to the output of layer i. Returns
        hidden states [padded N, hidden] in the row layout of the input, so that what follows needs
        no change.
        """
        deepstack = {} if deepstack_input_embeds is None else deepstack_input_embeds.tensors
        plan = step.plan
        # Copies: layers may write over their input, and compiled ones take no part of a buffer.
        hidden = embeddings[: plan.num_rows].clone()
        rows = Rows(plan, hidden.device, positions)
        stream = _Stream(rows.positions, hidden)
        scorer = Scorer(
            step,
            self._attention_blocks,
            self._prefix_keys,
            embeddings,
            cls_attention,
            self._registers,
            self._modules,
        )
        self.timing.begin_step(hidden.device)
        self._lora_rows.begin_step(plan)
        for index, layer in enumerate(self.layers):
            if index in step.plan.cuts and index not in step.plan.inside_layers:
                self._cut(index, step, rows, scorer, stream)
            if stream.is_empty:
                break
            self._names.enter(index, step)
            halves = self._halves[index] if index + 1 in step.plan.inside_layers else (layer,)
            is_watched = index in step.plan.rank_layers
            with self._watched(index, scorer) if is_watched else nullcontext():
                stream.run(self._run_layer, halves[0])
            for rest in halves[1:]:
                self._cut(index + 1, step, rows, scorer, stream)
                if not stream.is_empty:
                    stream.run(self._run_layer, rest)
            if index < len(deepstack):
                more = deepstack[f"deepstack_input_embeds_{index}"]
                stream.hidden = stream.hidden + more[rows.original]
        self.traces.end_step()
        self._lora_rows.end_step()
        self.adaptive_counts.note(step.plan)
        if stream.is_empty:
            return torch.zeros_like(embeddings)
        hidden, _ = self._decoder.norm(stream.hidden, stream.residual)
        with self.timing.spent("gather"):
            return restore(rows, hidden, len(embeddings))

    def _cut(
        self,
        index: int,
        step: Step,
        rows: Rows,
        scorer: Scorer,
        stream: "_Stream",
    ) -> None:
        """The cut before layer ``index``: at its beginning, or behind the attention of the one before."""
        members = step.plan.cuts[index]
        with self.timing.spent("rank"):
            scores = scorer.score_all(members, rows, index - 1, stream.at)
            if any(member.rule.is_adaptive for member in members):
                self._count(index, step, scores, rows, scorer)
                members = step.plan.cuts[index]
        with self.timing.spent("gather"):
            vision = rows.vision
            chosen = rows.cut(members, scores, chosen_by_first_rank)
            merged = None
            if any(member.rule.merge for member in members):
                merged = Merged(members, chosen, scores, vision, stream, chosen_by_first_rank)
            stream.take(chosen, rows.positions)
            if merged is not None:
                merged.put_into(stream)
            self._lora_rows.cut(index)
        self.traces.note(members, rows.vision)

    def _count(
        self, index: int, step: Step, scores: torch.Tensor, rows: Rows, scorer: Scorer
    ) -> None:
        """Find how many tokens stay at the cut before layer ``index``, and plan the rest of the step."""
        fewer = counts_of(step.plan.cuts[index], scores, rows)
        if fewer:
            plan = step.plan.with_counts(index, fewer)
            step.follow(plan, index)
            rows.follow(plan, index)
            scorer.follow(index)
            self._lora_rows.follow(plan)

    @contextmanager
    def _watched(self, layer: int, scorer: Scorer) -> Iterator[None]:
        """Let ``scorer`` look at what the attention of a layer gets."""
        backend = self.attentions[layer].impl
        attend = backend.forward

        # Inside vLLM's attention operator, which compiled code calls as it is. What it is given,
        # compiled code writes over once it has no more use for it.
        def look(
            attention: Attention,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            *rest: Any,
            **named: Any,
        ) -> torch.Tensor:
            exact = query
            if query.dtype != key.dtype:
                exact = unquantised(query, key.dtype, attention._q_scale)
            scorer.look(layer, exact, key, value)
            return attend(attention, query, key, value, *rest, **named)

        backend.forward = look
        try:
            yield
        finally:
            del backend.forward


@dataclass(eq=False)
class _Stream:
    """What goes from layer to layer."""

    positions: torch.Tensor
    """[..., rows]"""
    hidden: torch.Tensor
    """[rows, hidden]; inside of a layer what its attention gave [rows, heads * head_dim]."""
    residual: torch.Tensor | None = None
    """[rows, hidden]; None before the first layer."""

    @property
    def is_empty(self) -> bool:
        """Whether all rows are gone, as those of an image between two others, of which deep layers keep
        nothing. Then nothing may run: a kernel of no rows is an error on a GPU."""
        return not len(self.hidden)

    def run(self, run_layer: LayerRunner, layer: nn.Module) -> None:
        self.hidden, self.residual = run_layer(layer, self.positions, self.hidden, self.residual)

    def take(self, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """Go on with ``rows`` alone, whose ``positions`` are given."""
        self.positions = positions
        self.hidden = self.hidden.index_select(0, rows)
        if self.residual is not None:
            self.residual = self.residual.index_select(0, rows)

    def at(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """[rows, hidden] of the residual stream between two layers."""
        if self.residual is None:
            return self.hidden[rows]
        return self.hidden[rows] + self.residual[rows]


def unquantised(query: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor) -> torch.Tensor:
    """A copy of ``query`` [rows, heads, head_dim] in ``dtype``.

    Some backends take an fp8 query with an fp8 cache: ``scale`` is one for all heads, or one for each
    group of heads that shares a key.
    """
    if query.dtype == dtype:
        return query.clone()
    grouped = query.to(dtype).view(len(query), scale.numel(), -1)
    return (grouped * scale.view(-1, 1).to(dtype)).view(query.shape)


def checked_layers(decoder: nn.Module, num_layers: int) -> list[nn.Module]:
    """The decoder's layers, all of them; raises UnsupportedModel naming what does not fit.

    The contract: one of ``SUPPORTED_DECODERS``; every layer has one child that holds, as ``.attn``,
    full causal attention of vLLM, and ``.rotary_emb``.
    """
    name = type(decoder).__name__
    if name not in SUPPORTED_DECODERS:
        raise UnsupportedModel(
            f"decoder {name} is not known to run its layers as VTR repeats them; known are"
            f" {', '.join(SUPPORTED_DECODERS)}; start without VTR's --scheduler-cls and --worker-cls"
        )
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


def _attention_block(layer: nn.Module) -> nn.Module:
    """What a family calls ``self_attn`` or ``attention``."""
    (block,) = _attention_blocks(layer)
    return block


def _attention_blocks(layer: nn.Module) -> list[nn.Module]:
    return [
        child for child in layer.children() if isinstance(getattr(child, "attn", None), Attention)
    ]


def _why_not(layer: nn.Module) -> str | None:
    blocks = _attention_blocks(layer)
    if len(blocks) != 1:
        return f"has {len(blocks)} children with attn of vLLM's Attention, not one"
    attention = blocks[0].attn
    if not hasattr(blocks[0], "rotary_emb"):
        return "has no rotary_emb beside its attn"
    if attention.sliding_window is not None:
        return "uses a sliding window"
    if getattr(attention.impl, "logits_soft_cap", None):
        return "caps its attention logits"
    if getattr(attention.impl, "alibi_slopes", None) is not None:
        return "uses ALiBi"
    return None
