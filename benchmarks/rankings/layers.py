"""How alike the layers rank, in plain Transformers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import kendalltau
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.accuracy import Z95
from benchmarks.rankings.samples import Shown
from vtr_vllm.ranking import RankInputs
from vtr_vllm.schedules import RankRule
from vtr_vllm.schedules.keep_rates import keep_counts

__all__ = [
    *("ATTENTION_RULES", "TOP_SHARES", "Array", "Mask"),
    *("attention_scores", "blind_scores", "in_top", "measure_layers", "overlap_matrix"),
    *("scored", "tau_matrix"),
]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ATTENTION_RULES = ("last", "last-max", "instruction")
TOP_SHARES = (0.10, 0.25)


def attention_scores(attention: torch.Tensor, vision: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return every attention rule's scores ``[layers, n_vision]``.

    attention: ``[layers, heads, rows, rows]``, probabilities over every key. vision:
    ``[rows]``, whether a row is a vision token.
    """
    instruction = int(vision.nonzero()[-1]) + 1
    received = attention[..., instruction:, vision]
    return {
        "last": received[..., -1, :].mean(1),
        "last-max": received[..., -1, :].amax(1),
        "instruction": received.mean((1, 2)),
    }


def blind_scores(embeddings: torch.Tensor, cls: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the question-blind rules' scores ``[1, n_vision]`` of one image.

    embeddings: ``[n_vision, hidden]``. cls: ``[n_vision]``, what the tower's CLS token attends to;
    None: a tower without.
    """
    tokens = len(embeddings)
    inputs = RankInputs(
        vision=torch.arange(tokens),
        image_sizes=[tokens],
        vision_rows=tokens,
        seeds=[0],
        grids=[None],
        embeddings=embeddings,
        cls_attention=cls,
    )
    rules = ("saliency",) if cls is None else ("saliency", "cls")
    return {rule: RankRule.parse(rule).score(inputs)[None] for rule in rules}


@torch.no_grad()
def scored(folder: Path, samples: Iterable[Shown]) -> Iterator[tuple[Shown, dict[str, Array]]]:
    """Yield every sample with each rule's scores, ``[layers or 1, n_vision]``."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for shown in samples:
        content = [{"type": "image"}, {"type": "text", "text": shown.question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(images=[shown.image], text=[text], return_tensors="pt")
        vision = inputs["input_ids"][0] == model.config.image_token_id
        found = model(**inputs, output_attentions=True, output_hidden_states=True)
        attention = torch.cat(found.attentions)
        embeddings = found.hidden_states[0][0, vision]
        scores = attention_scores(attention, vision)
        scores |= blind_scores(embeddings, _cls_attention(model, inputs["pixel_values"]))
        yield shown, {rule: each.double().numpy() for rule, each in scores.items()}


def _cls_attention(model: Any, pixels: torch.Tensor) -> torch.Tensor | None:
    """What the tower's CLS token attends to, ``[n_vision]``, where rule ``cls`` knows it."""
    if model.config.vision_config.model_type != "clip_vision_model":
        return None
    tower = model.model.vision_tower(pixels, output_attentions=True)
    attention: torch.Tensor = tower.attentions[model.config.vision_feature_layer]
    return attention[0, :, 0, 1:].mean(0)


def tau_matrix(scores: Array) -> Array:
    """Return Kendall's tau-b between the rows of ``[layers, tokens]``, ``[layers, layers]``."""
    tau = np.eye(len(scores))
    for a, b in zip(*np.triu_indices(len(scores), 1), strict=True):
        tau[a, b] = tau[b, a] = kendalltau(scores[a], scores[b]).statistic
    return tau


def in_top(scores: Array, share: float) -> Mask:
    """Return which tokens a cut to ``share`` keeps by each row of ``[layers, tokens]``."""
    count = keep_counts([share], scores.shape[1])[0]
    kept = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(kept, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return kept


def overlap_matrix(kept: Mask) -> Array:
    """Return the share of tokens that rows of ``[layers, tokens]`` keep alike."""
    return kept.astype(np.float64) @ kept.T / kept[0].sum()


def measure_layers(folder: Path, samples: Iterable[Shown]) -> dict[str, Any]:
    """Return taus, overlaps and target shares, each the mean over the samples.

    Samples whose answer is read from no patch (nothing is there) count for no target share.
    """
    taus, overlaps = defaultdict(list), defaultdict(list)
    targets: dict[str, dict[str, list[Array]]] = defaultdict(lambda: defaultdict(list))
    for item, found in scored(folder, samples):
        for rule, scores in found.items():
            kept = {share: in_top(scores, share) for share in TOP_SHARES}
            if item.targets:
                for share in TOP_SHARES:
                    share_in = kept[share][:, list(item.targets)].mean(1)
                    targets[rule][str(share)].append(share_in)
            if rule in ATTENTION_RULES:
                taus[rule].append(tau_matrix(scores))
                overlaps[rule].append(overlap_matrix(kept[TOP_SHARES[0]]))
    return {
        "tau": {rule: np.mean(each, 0).tolist() for rule, each in taus.items()},
        "tau_half_interval": {
            rule: float(np.max(Z95 * np.std(each, 0, ddof=1)) / len(each) ** 0.5)
            for rule, each in taus.items()
        },
        "overlap": {rule: np.mean(each, 0).tolist() for rule, each in overlaps.items()},
        "targets": {
            rule: {share: np.mean(each, 0).tolist() for share, each in by_share.items()}
            for rule, by_share in targets.items()
        },
    }
