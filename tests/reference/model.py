"""A second, slow and plain implementation of layer-wise vision-token reduction.

It shares no code with the package: one prompt at a time, fp32, whole attention matrices, an
explicit loop over the layers, and tokens dropped by indexing. What the engine computes from paged
blocks must equal what is computed here. Counts and rules are plain inputs.

Words: ``P`` prompt tokens, ``C`` continuation tokens, ``n`` vision tokens of the prompt (all
images together), ``A`` rows alive at a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.reference.merges import merge_rows, rows_of_tokens
from tests.reference.scores import (
    Layer,
    attention_scores,
    fewest_holding,
    floors,
    image_seed,
    median_distance,
    random_scores,
    self_scores,
)

Counts = list[int]
Rules = dict[int, str]


@dataclass
class Cut:
    """One cut: the vision tokens before and after it, and how clear the choice was."""

    kept: Tensor
    """Indices among the prompt's ``n`` vision tokens, ascending."""
    scores: Tensor
    """``[n]``; NaN where the token was already gone."""
    margin: float
    """Least lead of a kept token over a dropped one in its place; near zero means a tie."""


@dataclass
class Run:
    """What ``ReferenceLlava.run`` found."""

    logits: Tensor
    """``[1 + C, vocab]``: at the last prompt token, then after each continuation token."""
    cuts: dict[int, Cut] = field(default_factory=dict)
    """By the layer before which the cut lies."""


class ReferenceLlava:
    """A LLaVA checkpoint whose decoder is run by the loop below."""

    def __init__(self, folder: Path | str) -> None:
        self.hf = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.processor = CLIPImageProcessorPil.from_pretrained(folder)
        self.config = self.hf.config
        self.text = self.config.text_config
        weights = load_file(Path(folder) / "model.safetensors")
        self.registers = weights.get("registers", torch.empty(0, self.text.hidden_size))
        self.theta = float(self.text.rope_parameters["rope_theta"])

    def prompt_token_ids(self, text: str) -> list[int]:
        """Return the ids of ``text``, each ``<image>`` expanded to its vision tokens."""
        vision = self.config.vision_config
        per_image = (vision.image_size // vision.patch_size) ** 2 + len(self.registers)
        image = self.config.image_token_id
        ids = self.tokenizer.encode(text).ids
        return [i for token in ids for i in [token] * (per_image if token == image else 1)]

    def pixel_values(self, images: list[Image.Image]) -> Tensor:
        """Return the preprocessed images, ``[images, 3, size, size]`` fp32."""
        return self.processor(images, return_tensors="pt")["pixel_values"].float()

    @torch.no_grad()
    def forward(
        self,
        prompt_token_ids: list[int],
        images: list[Image.Image],
        counts: Counts,
        rules: Rules | None = None,
        continuation: list[int] | None = None,
        floor: float = 0.0,
        local: list[Counts] | None = None,
    ) -> Tensor:
        """Return the logits of ``run``, ``[1 + C, vocab]`` fp32."""
        return self.run(prompt_token_ids, images, counts, rules, continuation, floor, local).logits

    @torch.no_grad()
    def run(
        self,
        prompt_token_ids: list[int],
        images: list[Image.Image],
        counts: Counts,
        rules: Rules | None = None,
        continuation: list[int] | None = None,
        floor: float = 0.0,
        local: list[Counts] | None = None,
    ) -> Run:
        """Run prompt and teacher-forced continuation in one causal pass.

        ``counts``: vision tokens that each layer sees, over all images. ``rules``: how the
        survivors are chosen, by the layer before which a cut lies. ``floor``: the share that each
        image has for sure, see ``floors``. ``local``: the counts of each image, where each keeps
        its own.
        """
        prompt = len(prompt_token_ids)
        ids = torch.tensor([*prompt_token_ids, *(continuation or [])])
        vision = (ids[:prompt] == self.config.image_token_id).nonzero().squeeze(1)
        features, cls = self._embed_images(images)
        rows = self.hf.get_input_embeddings()(ids)
        rows[vision] = features.flatten(0, 1)
        self._check(counts, rules or {}, len(vision))
        seeds = [image_seed(image) for image in images]
        state = _State(ids, prompt, vision, features, cls, floor, seeds, len(self.registers))
        result = Run(torch.empty(0))
        for index in range(self.text.num_hidden_layers):
            rule = (rules or {}).get(index, "")
            count = min(counts[index], len(state.alive))
            if count < len(state.alive) or "@" in rule:
                shares = None if local is None else [image[index] for image in local]
                rows, cut = _cut(state, rows, count, rule, shares)
                result.cuts[index] = cut
            rows, state.layer = self._layer(index, rows, state.positions())
        rows = _rms_norm(rows[-1 - len(ids) + prompt :], self.hf.model.language_model.norm)
        result.logits = functional.linear(rows, self.hf.lm_head.weight)
        return result

    def _check(self, counts: Counts, rules: Rules, n: int) -> None:
        if len(counts) != self.text.num_hidden_layers:
            raise ValueError(f"{len(counts)} counts for {self.text.num_hidden_layers} layers")
        before = [n, *counts]
        for layer, count in enumerate(counts):
            if not 0 <= count <= before[layer]:
                raise ValueError(f"layer {layer}: count {count} after {before[layer]}")
            if count < before[layer] and layer not in rules:
                raise ValueError(f"layer {layer}: count falls and no rule is given")

    def _embed_images(self, images: list[Image.Image]) -> tuple[Tensor, Tensor]:
        """Return projected features ``[images, n_i, hidden]`` and CLS attention ``[images, n_i]``."""
        tower = self.hf.model.vision_tower
        layer = self.config.vision_feature_layer
        layer += len(tower.encoder.layers) + 1 if layer < 0 else 0
        states = tower(self.pixel_values(images), output_hidden_states=True).hidden_states
        features = self.hf.model.multi_modal_projector(states[layer][:, 1:])
        block = tower.encoder.layers[layer - 1]
        inputs = block.layer_norm1(states[layer - 1])
        heads, head_dim = block.self_attn.num_heads, block.self_attn.head_dim
        query = block.self_attn.q_proj(inputs[:, 0]).unflatten(-1, (heads, head_dim))
        keys = block.self_attn.k_proj(inputs).unflatten(-1, (heads, head_dim))
        logits = torch.einsum("ihd,inhd->ihn", query, keys) * head_dim**-0.5
        registers = self.registers.float().expand(len(features), -1, -1)
        return torch.cat([features, registers], 1), logits.softmax(-1).mean(1)[:, 1:]

    def _layer(self, index: int, rows: Tensor, positions: Tensor) -> tuple[Tensor, Layer]:
        """Run one decoder layer on ``rows [A, hidden]`` at ``positions [A]``."""
        block = self.hf.model.language_model.layers[index]
        normed = _rms_norm(rows, block.input_layernorm)
        layer = self._project(block.self_attn, normed, positions)
        values = functional.linear(normed, block.self_attn.v_proj.weight)
        values = self._spread(values.unflatten(-1, (self.text.num_key_value_heads, -1)))
        mixed = torch.einsum("hqk,khd->qhd", layer.probabilities(), values).flatten(1)
        rows = rows + functional.linear(mixed, block.self_attn.o_proj.weight)
        normed = _rms_norm(rows, block.post_attention_layernorm)
        gate = functional.silu(functional.linear(normed, block.mlp.gate_proj.weight))
        up = functional.linear(normed, block.mlp.up_proj.weight)
        return rows + functional.linear(gate * up, block.mlp.down_proj.weight), layer

    def _project(self, attention: Any, normed: Tensor, positions: Tensor) -> Layer:
        """Return queries and keys, ``[A, heads, head_dim]`` each, before and after RoPE."""
        queries = functional.linear(normed, attention.q_proj.weight)
        queries = queries.unflatten(-1, (self.text.num_attention_heads, -1))
        keys = functional.linear(normed, attention.k_proj.weight)
        keys = self._spread(keys.unflatten(-1, (self.text.num_key_value_heads, -1)))
        return Layer(
            positions=positions,
            queries=_rotate(queries, positions, self.theta),
            keys=_rotate(keys, positions, self.theta),
            plain_queries=queries,
            plain_keys=keys,
        )

    def _spread(self, heads: Tensor) -> Tensor:
        """Repeat each key or value head for the query heads of its group."""
        groups = self.text.num_attention_heads // self.text.num_key_value_heads
        return heads.repeat_interleave(groups, dim=1)


class _State:
    """Which vision tokens are alive, and what the rules may look at."""

    def __init__(
        self,
        ids: Tensor,
        prompt: int,
        vision: Tensor,
        features: Tensor,
        cls: Tensor,
        floor: float,
        seeds: list[int],
        registers: int,
    ) -> None:
        self.ids, self.prompt, self.vision = ids, prompt, vision
        self.features, self.cls, self.floor, self.seeds = features, cls, floor, seeds
        self.registers = registers
        self.alive = torch.arange(len(vision))
        self.previous: Tensor | None = None
        self.layer: Layer | None = None

    def positions(self) -> Tensor:
        """Return the original positions of the rows alive, ascending."""
        there = torch.ones(len(self.ids), dtype=torch.bool)
        there[self.vision] = False
        there[self.vision[self.alive]] = True
        return there.nonzero().squeeze(1)

    def images_alive(self) -> list[Tensor]:
        """Return each image's vision tokens that are alive, as indices among the prompt's."""
        sizes = [len(image) for image in self.features]
        ends = torch.tensor(sizes).cumsum(0)
        starts = ends - torch.tensor(sizes)
        return [
            self.alive[(self.alive >= first) & (self.alive < end)]
            for first, end in zip(starts, ends, strict=True)
        ]

    def scores(self, rule: str) -> Tensor:
        """Return the scores of the prompt's vision tokens, ``[n]``; NaN where gone."""
        ranked, _, digits = rule.partition(":")
        name, *options = ranked.split("-")
        if name == "saliency":
            found = torch.cat([median_distance(image) for image in self.features])
        elif name == "registers":
            size = len(self.features[0])
            own = size - self.registers
            worth = [-i if i < own else size - i for i in range(size)]
            found = torch.tensor(worth, dtype=torch.float32).repeat(len(self.features))
        elif name == "cls":
            found = self.cls.flatten()
        elif name == "random":
            found = random_scores(self.seeds, [len(image) for image in self.features])
        elif name == "previous" and self.previous is not None:
            found = self.previous
        elif name == "self" and self.layer is not None:
            found = torch.full((len(self.vision),), float("nan"))
            for image in self.images_alive():
                found[image] = self_scores(self.layer, self.vision[image], options)
        elif name in ("last", "instruction") and self.layer is not None:
            first = int(self.vision[-1]) + 1 if name == "instruction" else self.prompt - 1
            readers = torch.arange(first, self.prompt)
            found = torch.full((len(self.vision),), float("nan"))
            seen = self.vision[self.alive]
            asked = [option for option in options if option != "prior"]
            found[self.alive] = attention_scores(self.layer, readers, seen, asked, digits)
            behind = int(self.vision[-1]) + 1
            if "prior" in options and behind < self.prompt - 1:
                null = torch.tensor([behind])
                found[self.alive] -= attention_scores(self.layer, null, seen, asked, digits)
        else:
            raise ValueError(f"rule {rule!r} cannot score at this cut")
        scores = torch.full((len(self.vision),), float("nan"))
        scores[self.alive] = found[self.alive]
        return scores


def _cut(
    state: _State, rows: Tensor, count: int, rule: str, shares: list[int] | None = None
) -> tuple[Tensor, Cut]:
    """Keep the ``count`` best of the vision tokens alive; ties go to the lower index.

    Each image's own best come first, as many as its floor says, or its share.
    """
    before = state.positions()
    rule, _, merge = rule.partition("+")
    rule, _, share = rule.partition("@")
    scores = state.scores(rule)
    ranked = state.alive[scores[state.alive].sort(descending=True, stable=True).indices].tolist()
    if share:
        count = min(count, fewest_holding([float(scores[token]) for token in ranked], float(share)))
    per_image = [len(image) for image in state.features]
    image_of = [number for number, size in enumerate(per_image) for _ in range(size)]
    kept: list[int] = []
    for number, floor in enumerate(shares or floors(state.floor, count, per_image)):
        kept += [token for token in ranked if image_of[token] == number][:floor]
    free = [token for token in ranked if token not in kept][: count - len(kept)]
    lost = [token for token in ranked if token not in kept and token not in free]
    rivals = [(k, d) for d in lost for k in kept if image_of[k] == image_of[d]]
    rivals += [(k, d) for d in lost for k in free]
    margin = min((float(scores[k] - scores[d]) for k, d in rivals), default=float("inf"))
    if merge:
        images = range(len(per_image)) if shares else [None]
        groups = [
            tuple([t for t in some if image in (None, image_of[t])] for some in (kept + free, lost))
            for image in images
        ]
        rows = merge_rows(rows, rows_of_tokens(before, state.vision), groups, scores, merge)
    state.alive = torch.tensor(sorted(kept + free), dtype=torch.long)
    state.previous = scores
    return rows[torch.isin(before, state.positions())], Cut(state.alive, scores, margin)


def _rms_norm(rows: Tensor, norm: Any) -> Tensor:
    """Scale ``rows [A, hidden]`` to unit mean square, times the norm's weight."""
    scale = torch.rsqrt(rows.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return rows * scale * norm.weight


def _rotate(heads: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotate ``heads [A, heads, head_dim]`` by ``positions [A]``, halves paired as in Llama."""
    half = heads.shape[-1] // 2
    frequencies = theta ** -(torch.arange(half, dtype=torch.float32) / half)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    low, high = heads[..., :half], heads[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
