"""A file of tensors is there whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vtr_vllm import tensor_file
from vtr_vllm.tensor_file import save_tensors


def test_what_is_written_is_read(tmp_path: Path) -> None:
    turned = torch.arange(6.0).view(2, 3).T.requires_grad_()
    save_tensors(tmp_path / "a", {"turned": turned}, of="something")
    with safe_open(tmp_path / "a", "pt") as file:
        assert torch.equal(file.get_tensor("turned"), turned)
        assert file.metadata() == {"format": "pt", "of": "something"}


def test_a_file_that_cannot_be_made_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(*_: object, **__: object) -> bytes:
        raise OSError("no space")

    monkeypatch.setattr(tensor_file, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_tensors(tmp_path / "a", {})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
