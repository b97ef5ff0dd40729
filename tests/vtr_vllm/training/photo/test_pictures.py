"""Pictures and what the tower says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vtr_vllm.training.photo.pictures import Features, Picture, digest, photographs


def test_features_go_on_where_they_stopped(
    make_tiny: Callable[[str], Any], pictures: list[Picture], tmp_path: Path
) -> None:
    processor, model, known = make_tiny("known")
    many = [pictures[i % 3] for i in range(12)]
    assert next(Features(tmp_path / "f", 12, 4, 16).fill(model, processor, many)) == 8
    again = Features(tmp_path / "f", 12, 4, 16)
    assert list(again.fill(model, processor, many)) == [12]
    for i in range(12):
        torch.testing.assert_close(again[i], known[i % 3], rtol=1e-2, atol=1e-2)
    assert not torch.allclose(again[0], again[1], atol=0.1)


def test_questions_of_a_photograph_are_gathered(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "question": "What is on the night_stand?", "answers": ["lamp"]},
        {"image": "a.png", "question": "What is there?", "answers": ["lamp", "tape_dispenser"]},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = photographs(path, "room")
    assert found.load().size == (40, 30)
    assert [(q.kind, q.text, q.answer) for q in found.questions] == [
        ("room", "What is on the night stand?", "lamp"),
        ("room", "What is there?", "lamp, tape dispenser"),
    ]


def test_other_questions_or_another_tower_have_another_digest(pictures: list[Picture]) -> None:
    torch.manual_seed(0)
    tower, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert digest(pictures, tower) == digest(list(pictures), tower)
    different = [(pictures, tower), (pictures[1:], tower), ([*pictures[1:], pictures[0]], tower)]
    assert len({digest(*data) for data in [*different, (pictures, other)]}) == 4
