"""Long prompts: what they are made of, what their FLOPs come to, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoProcessor

from benchmarks.length import share_of_flops, table
from benchmarks.shapes import long_request_cost, make_long_request, make_shape
from vtr_vllm.schedules import ModelGeometry

WIDE = ModelGeometry(2, 4096, 11008, 32, 32, 128)


def test_flops_of_short_prompts_fall_with_rows_and_of_long_ones_with_their_square() -> None:
    assert share_of_flops(WIDE, 100, 0, 0.25, 0) == pytest.approx(0.25, abs=0.01)
    assert share_of_flops(WIDE, 10**9, 0, 0.25, 0) == pytest.approx(0.25**2, abs=1e-3)
    assert share_of_flops(WIDE, 100, 0, 0.25, 10**18) == pytest.approx(1.0, abs=1e-3)
    assert share_of_flops(WIDE, 100, 50, 1.0, 7) == 1.0


@pytest.mark.parametrize(("form", "count"), [("images", 2), ("videos", 3), ("videos", 26)])
def test_prompts_have_the_vision_tokens_that_they_are_said_to(
    form: str, count: int, tmp_path: Path
) -> None:
    shape = make_shape("long", tmp_path, None, has_gpu=False)
    processor = AutoProcessor.from_pretrained(shape.model)
    request = make_long_request("long", form, count, 0)
    data = request["multi_modal_data"]
    if form == "videos":
        clips = [frames for frames, _ in data["video"]]
        made = processor(text=request["prompt"], videos=clips, return_tensors="pt")
        token = shape.config["video_token_id"]
    else:
        made = processor(text=request["prompt"], images=data["image"], return_tensors="pt")
        token = shape.config["image_token_id"]
    vision, tower = long_request_cost(shape, form, count)
    assert int((made["input_ids"] == token).sum()) == vision
    assert tower > 0


def test_the_table_has_a_row_a_form(tmp_path: Path) -> None:
    shape = make_shape("long", tmp_path, None, has_gpu=False)

    def arm(seconds: float, gap: float) -> dict[str, object]:
        facts = {"steps": 9, "ttft_s": seconds, "longest_gap_s": gap, "prompt_tokens": 16220}
        return facts | {"kv_peak_bytes": int(100 * seconds)}

    pairs = [
        {"form": "videos", "stock": arm(10.0, 2.0), "vtr": arm(vtr, 1.0)} for vtr in (2.0, 3.0, 4.0)
    ]
    rows = table(shape, pairs, 0.25).splitlines()
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert cells[:5] == ["videos", "16,200", "9 / 9", "10.00 / 3.00", "0.30 [0.20, 0.40]"]
    assert cells[7:] == ["2.00 / 1.00", "0.30"]
    assert {len(row.split("|")) for row in rows} == {len(cells) + 2}
