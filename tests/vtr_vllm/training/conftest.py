"""A tiny LLaVA, and questions about noise."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import torch

from tests.tiny import TinyShape, random_image, tiny_llava
from vtr_vllm.atp.module import AtpModules, Shape
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training.llava import Llava

LAYERS = 6
SHAPE = TinyShape(layers=LAYERS, image=112, patch=28)  # 16 vision tokens
ASKED = (("What colour is it?", "red"), ("And where, then?", "left"), ("How many?", "two"))


@pytest.fixture(scope="session")
def folder() -> Path:
    return tiny_llava(layers=LAYERS, vision_tokens=SHAPE.vision_tokens)


@pytest.fixture(scope="session")
def llava(folder: Path) -> Llava:
    return Llava.load(str(folder))


def uri(seed: int) -> str:
    """An image as a data URI."""
    file = io.BytesIO()
    random_image(SHAPE, seed).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions, each about an image of its own, of three kinds."""
    path = tmp_path_factory.mktemp("data") / "calibration.jsonl"
    lines = []
    for number in range(12):
        question, answer = ASKED[number % 3]
        line = {"id": f"q{number}", "image": uri(number), "question": question}
        line |= {"answers": [answer], "metric": "exact_match", "kind": question.split()[0]}
        lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def data(file: Path) -> Dataset:
    return Dataset.load(file)


@pytest.fixture
def modules(llava: Llava) -> AtpModules:
    """Of three cuts, with thresholds in the midst of the scores, so that they drop different counts."""
    torch.manual_seed(3)
    made = AtpModules((1, 3, 4), Shape(state=llava.state_width, bins=4))
    for index in range(3):
        torch.nn.init.normal_(made.cut(index).heads.weight, std=0.3)
        made.cut(index).heads.bias.data = torch.tensor([-0.3 * index, 1.0])
    return made
