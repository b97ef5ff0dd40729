"""Items as rows of tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.tokenizer import FIRST_VISION, decode
from vtr_vllm.errors import CalibrationError, ConfigurationError, UnsupportedModel
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training.llava import Llava


def test_prompt_and_answer_of_the_demo(data: Dataset) -> None:
    """As the demo was trained, and as its chat template is served."""
    llava = Llava.load("demo")
    item = dataclasses.replace(
        data.items[0], question="What color is the circle?", answers=("red",)
    )
    example = llava.example(item)
    assert example.prompt.count(llava.image_token) == llava.tokens == 144
    assert example.prompt.index(llava.image_token) == FIRST_VISION
    text = [token for token in example.prompt if token != llava.image_token]
    assert decode(text) == "<s> USER: \n What color is the circle ? ASSISTANT:".replace(
        "circle", decode([text[-3]])
    )
    assert decode(example.answer) == "red </s>"


def test_a_batch_pads_behind_and_says_what_stands_where(llava: Llava, data: Dataset) -> None:
    examples = llava.examples(data)[:3]
    side = llava.batch(examples)
    sizes = [len(e.prompt) + len(e.answer) for e in examples]
    assert len(set(sizes)) > 1
    assert side.ids.shape == (3, max(sizes))
    for number, example in enumerate(examples):
        line = [*example.prompt, *example.answer]
        assert side.ids[number, : len(line)].tolist() == line
        assert side.ids[number][side.rows.vision[number]].tolist() == [llava.image_token] * 16
        asking = side.rows.asking[number].nonzero()[:, 0].tolist()
        assert asking == list(range(int(side.rows.vision[number, -1]) + 1, len(example.prompt)))
        assert int(side.rows.last[number]) == len(example.prompt) - 1 == asking[-1]
        of = side.predicting[0] == number
        assert (side.predicting[1][of] + 1).tolist() == list(range(len(example.prompt), len(line)))
        assert side.answers[of].tolist() == example.answer
    assert int((side.ids == llava.image_token).sum()) == 48, "padding is no image"


def test_items_that_are_of_no_use_are_listed(llava: Llava, data: Dataset) -> None:
    first, second, *rest = data.items
    words = dataclasses.replace(first, image=None, image_hash=None)
    cheat = dataclasses.replace(second, question="<image> again?")
    with pytest.raises(CalibrationError, match=r":1: 0 images.*\n.*:2: .* 32 vision tokens"):
        llava.examples(Dataset(data.path, (words, cheat, *rest)))


def test_what_is_no_llava_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        UnsupportedModel, match="is a llama; what reduces its tokens is trained on LLaVA"
    ):
        Llava.load(str(tmp_path))
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        Llava.load(str(CHECKPOINT / "nowhere"))
