"""Pictures and what the tower says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vtr_vllm.errors import ConfigurationError
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


@pytest.mark.parametrize(
    "line",
    [
        "[",
        "[]",
        '{"image": "a.png", "question": "What?"}',
        '{"image": "a.png", "question": "What?", "answers": "lamp"}',
        '{"image": "a.png", "question": "What?", "answers": []}',
        '{"image": "a.png", "question": 3, "answers": ["lamp"]}',
    ],
)
def test_a_line_that_is_no_question_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ConfigurationError, match=r"data.jsonl, line 1: not an object with image"):
        photographs(path, "room")


def test_of_alternatives_the_first_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    line = {"image": "a.png", "question": "Is it?", "answers": ["yes", "no"], "metric": "vqa"}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(line))
    (found,) = photographs(path, "room")
    assert [q.answer for q in found.questions] == ["yes"]


def test_what_changes_a_result_is_in_the_digest(pictures: list[Picture]) -> None:
    other = [replace(pictures[0], name="another"), *pictures[1:]]
    drawn = [replace(pictures[0], load=lambda: Image.new("RGB", (28, 28))), *pictures[1:]]
    different = [pictures, pictures[1:], [*pictures[1:], pictures[0]], other, drawn]
    assert digest(pictures) == digest(list(pictures))
    assert len({digest(data) for data in different}) == len(different)
