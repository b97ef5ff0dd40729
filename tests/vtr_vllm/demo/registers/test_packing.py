"""The packaged registers become a checkpoint, and answer."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from vtr_vllm.demo import CHECKPOINT, sample
from vtr_vllm.demo.registers import DELTA
from vtr_vllm.demo.registers.packing import pack, write
from vtr_vllm.schedules import Schedule
from vtr_vllm.training.demo.evaluate import prepare
from vtr_vllm.training.registers.demo.evaluate import with_registers
from vtr_vllm.training.registers.demo.model import RegisterModel

COUNTS, LAYERS = (16, 8, 4), (1, 2, 3)


def test_what_is_written_is_a_checkpoint_that_answers(tmp_path: Path) -> None:
    write(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == load_file(CHECKPOINT / "model.safetensors").keys() | {"registers"}
    registers = weights["registers"].float()
    assert json.loads((tmp_path / "config.json").read_text())["vtr_registers"] == len(registers)
    pack(tmp_path, tmp_path / "delta.safetensors")
    assert (tmp_path / "delta.safetensors").read_bytes() == DELTA.read_bytes()
    for kept, layer in product(COUNTS, LAYERS):
        name = f"registers-{kept}-before-{layer}.json"
        counts = Schedule.load(tmp_path / "schedules" / name).counts(144 + len(registers))
        assert counts == (160,) * layer + (kept,) * (12 - layer)

    # Transformers knows no registers, and leaves theirs out
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    model = RegisterModel(llava, len(registers), COUNTS)
    with torch.no_grad():
        model.registers.copy_(registers)
    groups = prepare(llava, [sample("test", i) for i in range(100)])
    for kept in COUNTS:
        assert with_registers(model, groups, kept, 3)["all"] >= 0.96, ".995 of 1,000"
    assert with_registers(model, groups, 4, 2)["all"] >= 0.88, ".953 of 1,000"
