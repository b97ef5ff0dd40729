"""What is measured of a model with registers, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.registers import schedule, table, with_registers
from benchmarks.shapes import Shape, make_shape
from vtr_vllm.engine.common.registers import REGISTERS_KEY


def llava(folder: Path) -> Shape:
    return make_shape("llava", folder, None, False, "float32")


def test_a_checkpoint_gains_registers_and_loses_nothing(tmp_path: Path) -> None:
    shape = llava(tmp_path)
    found = with_registers(shape, 8)
    assert json.loads((found / "config.json").read_text()) == shape.config | {REGISTERS_KEY: 8}
    assert {f.name for f in found.iterdir()} == {f.name for f in shape.model.iterdir()}


def test_the_registers_alone_stay(tmp_path: Path) -> None:
    shape = llava(tmp_path)
    made = schedule(shape, 8, 3)
    assert made.counts(shape.vision_tokens + 8) == (584,) * 3 + (8,) * 21


def test_throughput_is_of_the_two_of_a_pair() -> None:
    def pair(stock: float, vtr: float) -> dict[str, object]:
        arms = {"stock": {"wall_s": stock, "kv": 100}, "vtr": {"wall_s": vtr, "kv": 25}}
        return {"concurrency": 16, "tokens": 2, **arms}

    rows = table([pair(3.0, 1.0), pair(4.0, 2.0), pair(5.0, 2.0)]).splitlines()
    assert rows[2] == "| 16 | 2 | 2.50 [2.00, 3.00] | 0.250 |"
