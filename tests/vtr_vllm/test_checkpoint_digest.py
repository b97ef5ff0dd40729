from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vtr_vllm import checkpoint_digest as module
from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.demo import CHECKPOINT


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(CHECKPOINT, tmp_path / "model")
    return tmp_path / "model"


def test_a_copy_is_the_same(copied: Path) -> None:
    (copied / "notes.md").write_text("of no concern")
    assert checkpoint_digest(str(copied)) == checkpoint_digest(str(CHECKPOINT))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "chat_template.jinja"])
def test_a_changed_byte_of_a_small_file_is_another(copied: Path, file: str) -> None:
    data = bytearray((copied / file).read_bytes())
    data[-2] ^= 1
    (copied / file).write_bytes(data)
    assert checkpoint_digest(str(copied)) != checkpoint_digest(str(CHECKPOINT))


@pytest.mark.parametrize("name", ["merges.txt", "tokenizer.model"])
def test_another_tokenizer_is_another_model(copied: Path, name: str) -> None:
    (copied / name).write_text("a b")
    assert checkpoint_digest(str(copied)) != checkpoint_digest(str(CHECKPOINT))


def test_of_a_large_file_parts_are_read_throughout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", 4)
    monkeypatch.setattr(module, "_PARTS", 5)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(100))
    before = checkpoint_digest(str(file))
    other = []
    for place in range(100):
        data = bytearray(100)
        data[place] = 1
        file.write_bytes(data)
        if checkpoint_digest(str(file)) != before:
            other.append(place)
    assert other == [first + place for first in range(0, 100, 20) for place in range(4)]


def test_of_the_hub_it_is_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "3f" * 20
    folder = tmp_path / "models--a--b"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    assert checkpoint_digest("a/b") == commit
    assert checkpoint_digest(str(folder / "snapshots" / commit)) == commit, (
        "as vLLM names it offline"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert checkpoint_digest("a/b") is None
    assert checkpoint_digest("a/b", cache=str(tmp_path)) == commit
    assert checkpoint_digest("a/c") is None
    assert checkpoint_digest("no name/of/the hub") is None
