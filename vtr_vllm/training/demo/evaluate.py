"""Evaluate a demo checkpoint in plain transformers: ``python -m vtr_vllm.training.demo.evaluate``.

Prints one JSON report: exact match per kind of question and split, what is lost when all
vision tokens go after a layer, and what a saliency that does not know the question keeps. No vLLM
is involved.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vtr_vllm.demo import (
    CHECKPOINT,
    CONVERSATIONS,
    SPLITS,
    Sample,
    conversation,
    prompt,
    sample,
)
from vtr_vllm.demo.conversations import TURN_NAMES
from vtr_vllm.demo.model import LAYERS, decoder_pass, normalise, vision_features
from vtr_vllm.demo.tokenizer import EOS, FIRST_VISION, VOCABULARY, question_ids
from vtr_vllm.demo.world import KINDS, VISION_TOKENS
from vtr_vllm.training.demo.batches import embed_prefix

BATCH = 100
SHARES_KEPT = (0.25, 0.15, 0.10)

Report = dict[str, Any]
Scores = dict[str, float]


@dataclass(frozen=True)
class Group:
    """Samples whose questions have the same length. ids: ``[n, t]``; features: ``[n, 144, w]``."""

    samples: list[Sample]
    ids: Tensor
    features: Tensor


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return model and processor of ``folder``. Raises OSError when there is no checkpoint."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    return model, AutoProcessor.from_pretrained(folder)


def by_length(samples: list[Sample]) -> Iterator[list[Sample]]:
    """Yield batches of samples with equally long questions, which need no padding."""
    groups: dict[int, list[Sample]] = defaultdict(list)
    for item in samples:
        groups[len(question_ids(item.question))].append(item)
    for group in groups.values():
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


@torch.no_grad()
def generate(model: Any, processor: Any, images: list[Image], texts: list[str]) -> list[str]:
    """Return what greedy ``generate()`` gives for prompts of equally many tokens."""
    inputs = processor(images=images, text=texts, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    texts = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def summarise(right: dict[str, list[bool]], names: tuple[str, ...] = KINDS) -> Scores:
    """Return the share of right answers over all and per name, as a rule a kind of question.

    At three decimals.
    """
    everything = [value for values in right.values() for value in values]
    groups = {"all": everything} | {name: right[name] for name in names if right[name]}
    return {name: round(float(np.mean(values)), 3) for name, values in groups.items()}


def exact_match(model: Any, processor: Any, samples: list[Sample]) -> Scores:
    """Return the exact match of the generated texts over all and per kind."""
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in by_length(samples):
        images, texts = zip(*((item.image, prompt(item.question)) for item in batch), strict=True)
        found = generate(model, processor, list(images), list(texts))
        for item, text in zip(batch, found, strict=True):
            right[item.kind].append(text == item.answer)
    return summarise(right)


@dataclass(frozen=True)
class Asked:
    """A turn of a conversation, with all that was said before it."""

    images: list[Image]
    text: str
    answer: str
    turn: str
    """One of ``TURN_NAMES``."""


def asked_turns(split: str, count: int) -> Iterator[Asked]:
    """Yield every turn of the first ``count`` conversations of ``split``."""
    for index in range(count):
        talk = conversation(split, index)
        scenes, images, said = iter(talk.scenes), [], ""
        for name, turn in zip(TURN_NAMES, talk.turns, strict=False):
            if turn.brings:
                images.append(fromarray(next(scenes).pixels))
            asked = said + prompt(turn.question.text, int(turn.brings))
            yield Asked(list(images), asked, turn.question.answer, name)
            said = f"{asked} {turn.question.answer}{EOS}"


def alike(asked: Iterable[Asked], processor: Any) -> Iterator[list[Asked]]:
    """Yield batches of prompts with equally many tokens and images, which need no padding."""
    groups: dict[tuple[int, int], list[Asked]] = defaultdict(list)
    for one in asked:
        groups[len(processor.tokenizer(one.text)["input_ids"]), len(one.images)].append(one)
    for group in groups.values():
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


def talk_match(model: Any, processor: Any, split: str, count: int) -> Scores:
    """Return the exact match in the first ``count`` conversations, over all and per turn."""
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in alike(asked_turns(split, count), processor):
        images = [image for asked in batch for image in asked.images]
        found = generate(model, processor, images, [asked.text for asked in batch])
        for asked, text in zip(batch, found, strict=True):
            right[asked.turn].append(text == asked.answer)
    return summarise(right, TURN_NAMES)


@torch.no_grad()
def prepare(model: Any, samples: list[Sample]) -> list[Group]:
    """Run the vision tower once and return the samples grouped by question length."""
    groups = []
    for batch in by_length(samples):
        pixels = normalise(np.stack([np.asarray(item.image) for item in batch]))
        ids = torch.tensor([question_ids(item.question) for item in batch])
        groups.append(Group(batch, ids, vision_features(model, pixels)))
    return groups


Rows = Callable[[Tensor], Tensor]


@torch.no_grad()
def answers(
    model: Any, group: Group, keep: Rows | None = None, drop_after: int | None = None
) -> list[str]:
    """Return the first word of each answer.

    keep: from the vision tokens ``[n, 144, w]`` to the sorted indices of those that enter the
    decoder, ``[n, k]``. drop_after: the layer after which all vision tokens go.
    """
    words = model.model.language_model.embed_tokens.weight
    text = torch.nn.functional.embedding(group.ids, words)
    x = torch.cat([embed_prefix(words, group.features), text], 1)
    positions = torch.arange(x.shape[1]).expand(len(x), -1)
    vision = VISION_TOKENS
    if keep is not None:
        kept = keep(group.features) + FIRST_VISION
        vision = kept.shape[1]
        head = torch.arange(FIRST_VISION).expand(len(x), -1)
        tail = torch.arange(FIRST_VISION + VISION_TOKENS, x.shape[1]).expand(len(x), -1)
        positions = torch.cat([head, kept, tail], 1)
        x = x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))
    size = x.shape[1]
    mask = torch.ones(size, size, dtype=torch.bool).tril().expand(len(x), 1, -1, -1)
    rest = torch.cat([torch.arange(FIRST_VISION), torch.arange(FIRST_VISION + vision, size)])
    hidden, _ = decoder_pass(
        model, x, positions, mask, cut=lambda i, _: rest if i == drop_after else None
    )
    best = model.lm_head(hidden[:, -1]).argmax(-1).tolist()
    return [VOCABULARY[i] if i < len(VOCABULARY) else "" for i in best]


def score(model: Any, groups: list[Group], **ablation: Any) -> Scores:
    """Return the share of right first words under an ablation of :func:`answers`."""
    right: dict[str, list[bool]] = defaultdict(list)
    for group in groups:
        words = answers(model, group, **ablation)
        for item, word in zip(group.samples, words, strict=True):
            right[item.kind].append(word == item.answer)
    return summarise(right)


def keep_salient(share: float) -> Rows:
    """Return a rule that keeps the tokens farthest from the image's median token."""
    count = round(share * VISION_TOKENS)

    def rule(features: Tensor) -> Tensor:
        distance = (features - features.median(1, keepdim=True).values).norm(dim=-1)
        return distance.topk(count, 1).indices.sort(1).values

    return rule


def keep_none(features: Tensor) -> Tensor:
    """Keep no vision token: how far the questions alone carry."""
    return torch.zeros(len(features), 0, dtype=torch.long)


def evaluate(folder: Path, count: int = 1000) -> Report:
    """Return the whole report on the checkpoint in ``folder``.

    count: samples of the test split; the other splits, of conversations too, and the ablations
    take half of it.
    """
    model, processor = load(folder)
    report: Report = {"samples": count, "accuracy": {}}
    for split in SPLITS:
        size = count if split == "test" else count // 2
        samples = [sample(split, i) for i in range(size)]
        report["accuracy"][split] = exact_match(model, processor, samples)
    for split in CONVERSATIONS:
        report["accuracy"][split] = talk_match(model, processor, split, count // 2)
    groups = prepare(model, [sample("test", i) for i in range(count // 2)])
    report["no_vision"] = score(model, groups, keep=keep_none)
    report["all_dropped_after_layer"] = [
        score(model, groups, drop_after=layer) for layer in range(LAYERS)
    ]
    report["salient_before_layer_0"] = {
        str(share): score(model, groups, keep=keep_salient(share)) for share in SHARES_KEPT
    }
    return report


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description="Evaluate a demo checkpoint.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(evaluate(arguments.checkpoint, arguments.samples)))


if __name__ == "__main__":
    main()
