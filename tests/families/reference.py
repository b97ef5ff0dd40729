"""The reduced forward pass of any family, written a second time around Transformers' own decoder.

It shares no code with the package. Transformers runs the whole sequence in fp32 with eager
attention; a token that is dropped before a layer is hidden from that layer on by the layer's mask,
which is what dropping means (``test_reference.py`` shows it). Scores are read off the attention
matrix of the layer before a cut; for rules without RoPE that layer's attention runs once more with
rotations by zero.

Words: ``P`` prompt tokens, ``C`` continuation tokens, ``T = P + C``, ``n`` vision tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.families.capture import Prompt
from tests.families.family import LanguageModel
from tests.reference.scores import median_distance, random_scores


@dataclass(frozen=True)
class Run:
    """What the reference found."""

    logits: Tensor
    """[1 + C, vocab]: at the last prompt token, then after each continuation token."""
    margins: dict[int, float]
    """By the layer before which a cut lies: least score kept minus greatest score dropped, as a
    share of the former. Near zero the choice is a tie, and not worth comparing."""


class Reference:
    """Runs prompts through the decoder of one checkpoint."""

    def __init__(self, language_model: LanguageModel) -> None:
        self.model: Any = language_model.model
        self.lm_head = language_model.lm_head

    @torch.no_grad()
    def run(
        self,
        prompt: Prompt,
        counts: Sequence[int],
        rules: dict[int, str],
        continuation: Sequence[int] = (),
        of_items: Sequence[Sequence[int]] | None = None,
    ) -> Run:
        """Run prompt and teacher-forced continuation in one causal pass.

        ``counts``: vision tokens that each layer sees. ``rules``: how the survivors are chosen, by
        the layer before which a cut lies. ``of_items``: the counts of each item, where each keeps
        its own.
        """
        later = self.model.get_input_embeddings()(torch.tensor(continuation, dtype=torch.long))
        rows = torch.cat([prompt.embeddings, later])
        cuts = _Cuts(prompt, len(rows), counts, rules, of_items)
        handles = [
            hook
            for index, layer in enumerate(self.model.layers)
            for hook in cuts.watch(index, layer, reads=index + 1 in rules)
        ]
        try:
            hidden = self.model(
                inputs_embeds=rows[None],
                position_ids=_positions(prompt, len(continuation)),
                use_cache=False,
                **_deepstack(prompt, len(rows)),
            ).last_hidden_state[0]
        finally:
            for handle in handles:
                handle.remove()
        return Run(functional.linear(hidden[len(prompt.ids) - 1 :], self.lm_head), cuts.margins)


class _Cuts:
    """Which vision tokens are alive, and the masks that make it so."""

    def __init__(
        self,
        prompt: Prompt,
        length: int,
        counts: Sequence[int],
        rules: dict[int, str],
        of_items: Sequence[Sequence[int]] | None,
    ) -> None:
        self.prompt, self.counts, self.rules, self.of_items = prompt, counts, rules, of_items
        self.alive = torch.arange(len(prompt.vision))
        self.mask = torch.full((length, length), float("-inf")).triu(1)
        self.margins: dict[int, float] = {}
        self._previous: Tensor | None = None
        self._attention: tuple[nn.Module, Any, dict[str, Any]] | None = None
        self._matrix: Tensor | None = None

    def watch(self, index: int, layer: Any, reads: bool) -> list[Any]:
        """Hooks that cut before a layer, give it the mask, and, if ``reads``, keep its attention."""

        def before(_layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if self.counts[index] < len(self.alive):
                self._cut(index)
            return args, {**kwargs, "attention_mask": self.mask[None, None]}

        def after(attention: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            self._attention, self._matrix = (attention, args, kwargs), output[1][0]

        hooks = [layer.register_forward_pre_hook(before, with_kwargs=True)]
        if reads:
            hooks.append(layer.self_attn.register_forward_hook(after, with_kwargs=True))
        return hooks

    def _cut(self, index: int) -> None:
        """Keep the best of the vision tokens alive, of all or of each item; ties go to the lower index."""
        scores = self._scores(self.rules[index])
        self._previous = scores
        groups = [(torch.arange(len(self.prompt.vision)), self.counts[index])]
        if self.of_items is not None:
            items = torch.arange(len(self.prompt.vision)).split(self.prompt.items)
            groups = [(item, own[index]) for item, own in zip(items, self.of_items, strict=True)]
        kept, gone, margins = [], [], []
        for tokens, count in groups:
            alive = self.alive[torch.isin(self.alive, tokens)]
            order = scores[alive].sort(descending=True, stable=True)
            kept.append(alive[order.indices[:count]])
            gone.append(alive[order.indices[count:]])
            if 0 < count < len(alive):
                least, lost = order.values[count - 1], order.values[count]
                margins.append(float((least - lost) / least.abs()))
        self.alive, gone = torch.cat(kept).sort().values, torch.cat(gone)
        if margins:
            self.margins[index] = min(margins)
        hidden = self.mask.clone()
        hidden[:, self.prompt.vision[gone]] = float("-inf")
        self.mask = hidden.fill_diagonal_(0)  # a row must see something; nobody reads hidden rows

    def _scores(self, rule: str) -> Tensor:
        """Scores of all vision tokens, [n]; those of tokens already gone mean nothing."""
        name, *options = rule.split("-")
        prompt = self.prompt
        if name == "saliency":
            images = prompt.embeddings[prompt.vision].split(prompt.items)
            return torch.cat([median_distance(image) for image in images])
        if name == "random":
            seeds = [zlib.crc32(f"0 {name}".encode()) for name in prompt.names]
            return random_scores(seeds, prompt.items)
        if name == "previous":
            assert self._previous is not None
            return self._previous
        if name not in ("last", "instruction") or set(options) - {"norope", "max"}:
            raise ValueError(f"rule {rule!r} is not known here")
        end = len(prompt.ids)
        first = int(prompt.vision[-1]) + 1 if name == "instruction" else end - 1
        matrix = self._unrotated() if "norope" in options else self._matrix
        assert matrix is not None
        read = matrix[:, first:end, prompt.vision]
        return (read.amax(0) if "max" in options else read.mean(0)).mean(0)

    def _unrotated(self) -> Tensor:
        """The attention [heads, T, T] of the layer before, had every token stood at position 0."""
        assert self._attention is not None
        attention, args, kwargs = self._attention
        cos, sin = kwargs["position_embeddings"]
        still = (torch.ones_like(cos), torch.zeros_like(sin))
        matrix: Tensor = attention.forward(*args, **{**kwargs, "position_embeddings": still})[1][0]
        return matrix


def _positions(prompt: Prompt, later: int) -> Tensor:
    """[1, T] or [3, 1, T]: text behind the prompt counts on from the highest position on any axis."""
    following = int(prompt.positions.max()) + 1 + torch.arange(later)
    following = following.expand(*prompt.positions.shape[:-1], later)
    return torch.cat([prompt.positions, following], -1).unsqueeze(-2)


def _deepstack(prompt: Prompt, length: int) -> dict[str, Any]:
    if not prompt.deepstack:
        return {}
    there = torch.zeros(1, length, dtype=torch.bool)
    there[0, prompt.vision] = True
    levels = [level[prompt.vision] for level in prompt.deepstack]
    return {"visual_pos_masks": there, "deepstack_visual_embeds": levels}
