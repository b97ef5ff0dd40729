"""What is counted as right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vtr_vllm.training.photo import score as module
from vtr_vllm.training.photo.packing import pack
from vtr_vllm.training.photo.pictures import Picture
from vtr_vllm.training.photo.score import score
from vtr_vllm.training.photo.train import Recipe, Trainer


def test_an_answer_is_right_when_all_its_tokens_are(
    make_tiny: Callable[[str], Any],
    pictures: list[Picture],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor, model, features = make_tiny("f")
    trainer = Trainer(model, processor, pictures, features, Recipe(rank=2), tmp_path)
    for index in range(3):
        features._rows[index] = index  # what the decoder below goes by

    def rows(states: torch.Tensor, packed: Any) -> torch.Tensor:
        """One-hot of the right tokens beside a picture's own states, but for the last answer's last."""
        said = packed.answers.clone()
        said[-1] += 1
        own = any(
            int(states[0, 0]) == i and torch.equal(packed.answers, pack(processor, p).answers)
            for i, p in enumerate(pictures)
        )
        return torch.nn.functional.one_hot(said if own else said * 0, 300).float()

    monkeypatch.setattr(trainer, "rows", rows)
    monkeypatch.setattr(trainer, "logits", lambda rows: rows)
    found = score(trainer, pictures, features)
    assert found["n"] == 6
    assert found["right"] == found["kinds"]["any"] == pytest.approx(3 / 6, abs=1e-3)
    assert found["beside another picture"] == 0
    low, high = found["interval"]
    assert low <= found["right"] <= high


def test_an_interval_goes_by_pictures() -> None:
    """Ten questions each, all right or all wrong: no surer than ten questions."""
    apart = module._interval([[True] if i % 2 else [False] for i in range(40)])
    together = module._interval([[True] * 10 if i % 2 else [False] * 10 for i in range(40)])
    assert apart == together
    assert apart[1] - apart[0] > 0.25
