"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtr_vllm.whole_file import whole_file, whole_file_of_bytes


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with whole_file(path) as file:
        file.write("nü\n")
        assert path.read_text() == "old"
    assert path.read_bytes() == "nü\n".encode()
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def write() -> None:
        with whole_file(path) as file:
            file.write("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_file_of_bytes_takes_its_place_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with whole_file_of_bytes(path) as file:
        file.write(b"\xff\r\n")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"\xff\r\n"
    with pytest.raises(RuntimeError), whole_file_of_bytes(path) as file:
        raise RuntimeError("stopped")
    assert path.read_bytes() == b"\xff\r\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
