"""LoRA through peft, where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vtr_vllm.atp.artefact import LORA, Artefact
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training import lora
from vtr_vllm.training.atp.options import AtpOptions
from vtr_vllm.training.atp.reference import Reference
from vtr_vllm.training.atp.train import AtpTraining
from vtr_vllm.training.llava import Llava


def test_adapters_learn_and_are_read_back(folder: Path, data: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `train` is not installed")
    llava = Llava.load(str(folder))
    options = AtpOptions(
        model="tiny", data="x", target=0.5, steps=2, batch=4, lora=2, lora_rate=0.01, heldout=0.0
    )
    training = AtpTraining(llava, data, options, tmp_path)
    example = training.training[0]
    before = llava.logits(llava.batch([example]), None)
    assert training.run(print, lambda: False)
    training.end()
    after = llava.logits(llava.batch([example]), None)
    assert not torch.equal(before, after)
    assert (tmp_path / LORA).exists()
    again = Reference(Llava.load(str(folder)), Artefact.load(tmp_path))
    for name, tensor in lora.tensors(llava.decoder).items():
        assert torch.equal(lora.tensors(again.llava.decoder)[name], tensor), name
