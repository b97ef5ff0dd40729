"""Questions in one sequence are computed as each would be alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vtr_vllm.training.photo.packing import pack
from vtr_vllm.training.photo.pictures import Picture
from vtr_vllm.training.photo.train import Recipe, Trainer


def test_each_question_is_computed_as_if_alone(
    make_tiny: Callable[[str], Any], pictures: list[Picture], tmp_path: Path
) -> None:
    processor, model, features = make_tiny("f")
    trainer = Trainer(model, processor, pictures, features, Recipe(rank=2), tmp_path)
    for index, shown in enumerate(pictures):
        packed = pack(processor, shown)
        with torch.no_grad():
            rows = trainer.logits(trainer.rows(features[index], packed))
        for question in shown.questions:
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            told = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            answer = processor.tokenizer(question.answer, add_special_tokens=False).input_ids
            inputs = processor(text=told, images=shown.load(), return_tensors="pt")
            prompt = inputs.input_ids.shape[1]
            ids = torch.cat([inputs.input_ids, torch.tensor([answer])], 1)
            with torch.no_grad():
                alone = model(input_ids=ids, pixel_values=inputs.pixel_values).logits[0]
            own, rows = rows[: len(answer) + 1], rows[len(answer) + 1 :]
            close = {"rtol": 1e-2, "atol": 1e-2}  # features are kept in half precision
            torch.testing.assert_close(own, alone[prompt - 1 :], **close)
        assert not len(rows)


def test_a_thinned_picture_is_computed_as_if_the_others_were_masked(
    make_tiny: Callable[[str], Any], pictures: list[Picture], tmp_path: Path
) -> None:
    processor, model, features = make_tiny("f")
    trainer = Trainer(model, processor, pictures, features, Recipe(rank=2), tmp_path)
    whole = pack(processor, pictures[0])
    kept = torch.tensor([0, 3])
    thin = whole.thinned(kept)
    assert len(thin.ids) == len(whole.ids) - len(whole.vision) + len(kept)
    assert torch.equal(thin.ids[thin.vision], whole.ids[whole.vision[kept]])
    assert torch.equal(thin.positions[thin.vision], whole.positions[whole.vision[kept]])
    hidden = [int(row) for i, row in enumerate(whole.vision) if i not in kept]
    mask = whole.mask()
    mask[..., hidden] = -torch.inf
    mask[..., hidden, hidden] = 0.0
    with torch.no_grad():
        wanted = trainer.rows(features[0], _Masked(whole, mask))
        got = trainer.rows(features[0][kept], thin)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


class _Masked:
    """A sequence under another mask."""

    def __init__(self, packed: Any, mask: torch.Tensor) -> None:
        self._packed, self._mask = packed, mask

    def __getattr__(self, name: str) -> Any:
        return getattr(self._packed, name)

    def mask(self) -> torch.Tensor:
        return self._mask
