"""All questions about a picture in one sequence: the picture once, then question after question.

A question sees the picture and itself, and stands at the positions it would have alone, so that what is
computed is what each question alone would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtr_vllm.training.photo.pictures import Picture

__all__ = ["Packed", "pack"]


@dataclass(frozen=True)
class Packed:
    """One picture's sequence. ``R`` rows, ``T`` answer tokens of all its questions."""

    ids: Tensor
    """``[R]``"""
    positions: Tensor
    """``[R]``"""
    question: Tensor
    """Which question a row belongs to, ``[R]``; -1: the part that all see."""
    vision: Tensor
    """Rows of the vision tokens, ``[N]``."""
    predicting: Tensor
    """Rows that predict an answer's tokens, ``[T]``."""
    answers: Tensor
    """Those tokens, ``[T]``."""

    def mask(self) -> Tensor:
        """Added to attention's scores: 0 where a row looks at another, else -inf, ``[1, 1, R, R]``."""
        rows = torch.arange(len(self.ids))
        causal = rows[:, None] >= rows[None]
        seen = (self.question[None] == -1) | (self.question[None] == self.question[:, None])
        return torch.zeros(causal.shape).masked_fill(~(causal & seen), -torch.inf)[None, None]

    def thinned(self, kept: Tensor) -> Packed:
        """With these of its vision tokens alone, ``[K]``, ascending in 0..N-1; positions stay."""
        stays = torch.ones(len(self.ids), dtype=torch.bool)
        stays[self.vision] = False
        stays[self.vision[kept]] = True
        row = stays.cumsum(0) - 1
        return Packed(
            ids=self.ids[stays],
            positions=self.positions[stays],
            question=self.question[stays],
            vision=row[self.vision[kept]],
            predicting=row[self.predicting],
            answers=self.answers,
        )


def pack(processor: Any, picture: Picture) -> Packed:
    """Return a picture's questions as one sequence."""
    tokenizer, image = processor.tokenizer, processor.image_token_id
    prompts, answers = [], []
    for question in picture.questions:
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        places = processor.start_image_token + processor.image_token * processor.image_seq_length
        text = text.replace(processor.image_token, places + processor.end_image_token)
        prompts.append(tokenizer(text, add_special_tokens=False).input_ids)
        told = tokenizer(question.answer, add_special_tokens=False).input_ids
        answers.append([*told, tokenizer.eos_token_id])
    shared = len(prompts[0]) - prompts[0][::-1].index(image) + 1  # with the mark behind the image
    ids, positions, owner = prompts[0][:shared], list(range(shared)), [-1] * shared
    predicting: list[int] = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        own = [*prompt[shared:], *answer[:-1]]
        last = len(ids) + len(prompt) - shared - 1
        predicting += range(last, last + len(answer))
        ids += own
        positions += range(shared, shared + len(own))
        owner += [i] * len(own)
    found = torch.tensor(ids)
    return Packed(
        ids=found,
        positions=torch.tensor(positions),
        question=torch.tensor(owner),
        vision=(found == image).nonzero()[:, 0],
        predicting=torch.tensor(predicting),
        answers=torch.tensor([token for answer in answers for token in answer]),
    )
