"""The files of a batch: read line by line, written as lines end, gone on with after a kill."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.bad_input import COMPLETION
from tests.server.vllm_api.lines import line
from vtr_server.vllm_api.batch_files import BatchInput, BatchOutput, Line
from vtr_vllm.errors import ConfigurationError


def read(text: str | bytes) -> list[Line]:
    data = text.encode() if isinstance(text, str) else text
    return list(BatchInput(io.BytesIO(data)).lines())


@given(st.text() | st.lists(st.text(max_size=20)).map("\n".join))
def test_any_text_gives_one_line_each_with_a_request_or_an_error(text: str) -> None:
    found = read(text)
    assert len(found) == sum(bool(part.strip()) for part in text.split("\n"))
    for one in found:
        assert one.custom_id
        assert (one.error is None) == bool(one.body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=4))
def test_a_good_line_keeps_its_id_and_its_body(custom_id: str, body: dict[str, Any]) -> None:
    body.pop("stream", None)
    whole = {"custom_id": custom_id, "method": "POST", "url": COMPLETION, "body": body}
    [found] = read(json.dumps(whole))
    assert (found.custom_id, found.url, found.error) == (custom_id, COMPLETION, None)
    assert json.loads(found.body) == body


@pytest.mark.parametrize(
    ("text", "custom_id", "said"),
    [
        ("{nope", "line-1", "Invalid JSON"),
        ("[1]", "line-1", "a line is one JSON object"),
        ('"text"', "line-1", "a line is one JSON object"),
        ("[" * 100_000, "line-1", "Invalid JSON"),
        ('{"custom_id": 7}', "line-1", "custom_id"),
        ('{"custom_id": "a"}', "a", "method"),
        (line("a").replace("POST", "GET"), "a", "POST"),
        (line("a", "/v1/embeddings"), "a", "/v1/embeddings"),
        (line("a", "/health"), "a", "/health"),
        (line("a", stream=True), "a", "leave stream out"),
    ],
)
def test_a_bad_line_says_what_is_wrong(text: str, custom_id: str, said: str) -> None:
    [found] = read(text)
    assert found.custom_id == custom_id
    assert said in str(found.error)
    assert "line 1 of the batch file" in str(found.error)


# Reading


def test_keys_are_those_of_the_text_and_tell_repeats_apart() -> None:
    text = "\n".join([line("a"), line("b"), line("a"), "", line("a", more=1)])
    keys = [one.key for one in read(text)]
    assert len(set(keys)) == 4
    assert [one.key for one in read(line("x") + "\n" + text)][1:] == keys
    asked = BatchInput(io.BytesIO(text.encode()))
    assert list(asked.keys) == keys
    assert list(asked.keys.values()) == [1, 2, 3, 5]
    assert [one.key for one in asked.lines(keys[:2])] == keys[2:]
    assert [one.key for one in asked.lines()] == keys  # from the start again


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n\n", "\n\t\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_a_byte_order_mark_change_nothing(end: str, mark: str) -> None:
    plain = read(line("a") + "\n" + line("b"))
    assert read(mark + line("a") + end + line("b") + end) == [
        Line(one.key, one.custom_id, one.url, one.body) for one in plain
    ]


def test_what_is_not_utf_8_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigurationError, match="line 2 of the batch file is not UTF-8"):
        read(line("a").encode() + b"\n\xe9\n")


def test_a_pipe_can_be_read_though_it_is_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(line("a") + "\n" + line("b"),))
    writer.start()
    with ExitStack() as files:
        asked = BatchInput.open(str(pipe), files)
        assert [one.custom_id for one in asked.lines()] == ["a", "b"]
        assert [one.custom_id for one in asked.lines()] == ["a", "b"]
    writer.join()


# Writing


COUNT = 6
ASKED = BatchInput(io.BytesIO("\n".join(line(str(n)) for n in range(COUNT)).encode()))
KEYS = list(ASKED.keys)


def said(key: str, status: int = 200, more: str = "\u00e9") -> str:
    """One line's output."""
    return json.dumps({"id": key, "response": {"status_code": status}, "more": more})


@contextmanager
def opened(path: Path, asked: BatchInput = ASKED) -> Iterator[BatchOutput]:
    with ExitStack() as files:
        yield BatchOutput(path, asked.keys, files)


def test_a_line_is_in_the_file_when_it_is_written_and_in_its_place_at_the_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out.jsonl"
    order = [3, 0, 5, 1, 4, 2]
    with opened(path) as output:
        for done, number in enumerate(order):
            output.write(KEYS[number], said(KEYS[number]), failed=number == 5)
            assert path.read_text() == "".join(said(KEYS[n]) + "\n" for n in order[: done + 1])
        assert output.failed == 1
        path.chmod(0o640)
        output.finish(ASKED.keys)
    assert path.read_text() == "".join(said(key) + "\n" for key in KEYS)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


ORDER = st.permutations(range(COUNT))


@given(ORDER, st.sets(st.integers(0, COUNT - 1)), st.floats(0, 1))
def test_a_run_that_was_killed_anywhere_goes_on(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], failed: set[int], share: float
) -> None:
    """Whatever part of the file is there: whole answers count, the rest is asked again."""
    path = tmp_path_factory.mktemp("batch") / "out.jsonl"
    texts = [said(KEYS[n], 503 if n in failed else 200) for n in order]
    whole = "".join(text + "\n" for text in texts).encode()
    cut = round(share * len(whole))
    path.write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")
    answered = {KEYS[n] for n in order[:left] if n not in failed}
    with opened(path) as output:
        assert set(output.answered) == answered
        assert path.read_bytes() == whole[: whole[:cut].rfind(b"\n") + 1]
        pending = [one.key for one in ASKED.lines(frozenset(output.answered))]
        assert pending == [key for key in KEYS if key not in answered]
        for key in reversed(pending):
            output.write(key, said(key, more="again"), failed=False)
        output.finish(ASKED.keys)
    assert path.read_text() == "".join(
        said(key, more="\u00e9" if key in answered else "again") + "\n" for key in KEYS
    )


def test_a_corrected_input_keeps_the_answers_and_asks_what_was_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as output:
        for number, key in enumerate(KEYS):
            output.write(key, said(key, 400 if number == 2 else 200), failed=number == 2)
        output.finish(ASKED.keys)
    texts = [line(str(n)) if n != 2 else line("corrected") for n in range(COUNT)]
    corrected = BatchInput(io.BytesIO("\n".join(texts).encode()))
    with opened(path, corrected) as output:
        [pending] = corrected.lines(frozenset(output.answered))
        assert pending.custom_id == "corrected"
        output.write(pending.key, said(pending.key), failed=False)
        output.finish(corrected.keys)
    ids = [json.loads(text)["id"] for text in path.read_text().splitlines()]
    assert ids == list(corrected.keys)


@pytest.mark.parametrize(
    "content",
    [
        said("vtr-batch-0-1"),  # an answer to another input
        said("vllm-123"),  # vLLM's own runner
        said("vllm-123", 400),
        "notes of somebody",
        "{}",
        "[1]",
        '{"id": 7, "response": {"status_code": 200}}',
        "[" * 100_000,
        "\0\0",
    ],
)
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(said(KEYS[0]) + "\n" + content + "\n")
    before = path.read_bytes()
    with (
        pytest.raises(ConfigurationError, match="out.jsonl:2 answers no line of this input"),
        opened(path),
    ):
        pass
    assert path.read_bytes() == before


def test_one_run_at_a_time_has_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with (
        opened(path),
        pytest.raises(ConfigurationError, match="another vtr batch writes to"),
        opened(path),
    ):
        pass
    with opened(path):
        pass


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    with opened(tmp_path / "link.jsonl") as output:
        for key in reversed(KEYS):
            output.write(key, said(key), failed=False)
        output.finish(ASKED.keys)
    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").read_text().splitlines()[0] == said(KEYS[0])


def test_a_pipe_is_only_written(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    with opened(pipe) as output:
        for key in reversed(KEYS):
            output.write(key, said(key), failed=False)
        output.finish(ASKED.keys)
    reader.join()
    assert heard == ["".join(said(key) + "\n" for key in reversed(KEYS))]
