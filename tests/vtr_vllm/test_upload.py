import re
from pathlib import Path

import numpy as np
import torch

from vtr_vllm.upload import upload, upload_together, wait_for

PACKAGE = Path(__file__).parents[2] / "vtr_vllm"


def test_values_arrive_as_they_are():
    values = np.array([[1, 2], [3, 4]], dtype=np.int32)
    for given in (values, torch.from_numpy(values)):
        there = upload(given, torch.device("cpu"))
        assert there.dtype == torch.int32
        assert there.tolist() == values.tolist()


def test_several_arrays_are_one_copy(monkeypatch):
    sent = []
    monkeypatch.setattr(
        "vtr_vllm.upload.upload", lambda *given: sent.append(given) or upload(*given)
    )
    arrays = [np.arange(3), np.zeros((2, 0), np.int64), np.arange(34).reshape(2, 17), np.arange(16)]
    there = upload_together(arrays, torch.device("cpu"))
    assert len(sent) == 1
    for array, tensor in zip(arrays, there, strict=True):
        assert tensor.dtype == torch.int32
        assert tensor.tolist() == array.tolist()
        assert not array.size or tensor.data_ptr() % 16 == sent[0][0].ctypes.data % 16


def test_a_gpu_copies_out_of_pinned_memory(monkeypatch):
    done = []

    def pin_memory(tensor):
        done.append("pinned")
        return tensor

    def to(tensor, device, non_blocking=False):
        done.append((str(device), non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    upload(np.arange(3), torch.device("cuda", 0))
    assert done == ["pinned", ("cuda:0", True)]
    done.clear()
    upload(np.arange(3), torch.device("cpu"))
    assert done == [("cpu", True)]


def test_a_step_sends_host_arrays_in_no_other_way():
    """LoRA's table is vLLM's to write, and waits for the device by itself."""
    others = re.compile(r"(from_numpy|torch\.tensor|torch\.rand)\([^\n]*\)\.(to|cuda)\(")
    files = [
        *(PACKAGE / "ranking").rglob("*.py"),
        *(PACKAGE / "reduction").rglob("*.py"),
        *(PACKAGE / "engine" / "worker").rglob("*.py"),
    ]
    assert len(files) > 20
    assert [path.name for path in files if others.search(path.read_text())] == []


def test_whole_numbers_come_back() -> None:
    assert wait_for(torch.tensor([3, 0, 2**40])) == [3, 0, 2**40]
