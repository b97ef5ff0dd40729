"""How many questions the demo model answers right with nothing but registers behind a layer."""

from __future__ import annotations

from collections import defaultdict

import torch

from vtr_vllm.demo.evaluate import prepare, summarise
from vtr_vllm.demo.splits import sample
from vtr_vllm.demo.tokenizer import PREFIX, VOCABULARY
from vtr_vllm.training.registers.demo.model import RegisterModel, dropping_pass


@torch.no_grad()
def right_answers(
    model: RegisterModel, split: str, count: int, kept: int, layer: int
) -> dict[str, float]:
    """Share of right first words among the first ``count`` samples of ``split``, over all and by kind."""
    right: dict[str, list[bool]] = defaultdict(list)
    for group in prepare(model.llava, [sample(split, i) for i in range(count)]):
        text = torch.nn.functional.embedding(group.ids, model.words)
        size = len(PREFIX) + text.shape[1]
        positions = torch.arange(len(PREFIX), size).expand(len(text), -1)
        mask = torch.ones(size, size, dtype=torch.bool).tril().expand(len(text), 1, -1, -1)
        passed = dropping_pass(model, group.features, text, positions, mask, kept, layer)
        best = model.llava.lm_head(passed.hidden[:, -1]).argmax(-1).tolist()
        for item, word in zip(group.samples, best, strict=True):
            right[item.kind].append(word < len(VOCABULARY) and VOCABULARY[word] == item.answer)
    return summarise(right)
