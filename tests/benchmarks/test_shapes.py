"""The measured shapes are what docs/benchmarks.md says they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from benchmarks import towers
from benchmarks.cost import predict
from benchmarks.dummies import DUMMIES
from benchmarks.shapes import UnsupportedDevice, make_request, make_shape
from vtr_vllm.schedules import full, p_sigmoid

N_TEXT = 64


@pytest.mark.parametrize("name", [name for name, dummy in DUMMIES.items() if dummy.tower_share])
def test_towers_weigh_what_those_of_their_models_do(name: str, tmp_path: Path) -> None:
    shape = make_shape(name, tmp_path, None, has_gpu=True)
    share = predict(shape, full(shape.geometry), N_TEXT).tower_share
    assert share == pytest.approx(DUMMIES[name].tower_share, abs=0.003)


@pytest.mark.parametrize(("name", "tokens"), [("internvl2", 1280), ("qwen2.5-vl", 1024)])
def test_vision_tokens_are_what_the_processor_makes(name: str, tokens: int, tmp_path: Path) -> None:
    shape = make_shape(name, tmp_path, None, has_gpu=False)
    processor = AutoProcessor.from_pretrained(shape.model)
    request: dict[str, Any] = make_request(name, 0)
    image = request["multi_modal_data"]["image"]
    ids = processor(text=request["prompt"], images=image, return_tensors="pt")["input_ids"]
    assert int((ids == shape.config["image_token_id"]).sum()) == shape.vision_tokens == tokens


def test_prediction_lies_between_none_and_the_decoder_alone(tmp_path: Path) -> None:
    shape = make_shape("half-b", tmp_path, None, has_gpu=False)
    assert predict(shape, full(shape.geometry), N_TEXT).ratio == 1.0
    half = predict(shape, p_sigmoid(shape.geometry, 0.5), N_TEXT)
    assert 1.0 < half.ratio < half.decoder_ratio < 2.0


def test_a_cpu_refuses_the_big_shape(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedDevice, match="GPU"):
        make_shape("llava-7b", tmp_path, None, has_gpu=False)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--checkpoint"):
        make_shape("demo", tmp_path, tmp_path / "nothing", has_gpu=False)


def test_no_two_requests_share_an_image() -> None:
    images = [make_request("half-b", i)["multi_modal_data"]["image"].tobytes() for i in (0, 1, 0)]
    assert images[0] != images[1]
    assert images[0] == images[2]


def test_patches_that_stay_apart_are_projected_one_by_one(tmp_path: Path) -> None:
    """The photo model's tower has as many patches as vision tokens: each is projected from one width."""
    config = make_shape("internvl2", tmp_path, None, has_gpu=False).config
    d, hidden = config["vision_config"]["hidden_size"], config["text_config"]["hidden_size"]
    apart = config | {"image_seq_length": 1024, "downsample_ratio": 1.0}
    merged_by_four = 256 * (4 * d * hidden + hidden * hidden)
    one_by_one = 1024 * (d * hidden + hidden * hidden)
    grown = towers.tower_flops(apart, 448) - towers.tower_flops(config, 448)
    assert grown == one_by_one - merged_by_four
