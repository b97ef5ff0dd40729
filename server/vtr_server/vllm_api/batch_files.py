"""The files of ``vtr batch``: requests read line by line, answers written as they end.

Both may be larger than memory: what is held is a key for each line. The key is made from the line's
text, and stands as ``id`` in its output, so a run that was killed goes on where it was.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ValidationError

from vtr_vllm.errors import ConfigurationError, RequestError, show
from vtr_vllm.faults import first_fault
from vtr_vllm.whole_file import whole_file_of_bytes

__all__ = ["BatchInput", "BatchOutput", "Line"]

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_KEY = "vtr-batch-"
_BOM = b"\xef\xbb\xbf"


class _Fields(BaseModel):
    """A line as OpenAI's batch format has it."""

    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    body: dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One request of the file, or why it is none."""

    key: str
    """The ``id`` of its output: the same for the same text, with a number where that repeats."""
    custom_id: str
    url: str = ""
    body: bytes = b""
    error: RequestError | None = None


class BatchInput:
    """The requests of a file, in its order; empty lines are left out, bad ones become their error."""

    def __init__(self, file: BinaryIO) -> None:
        """Look through the whole of ``file``, which is at its start and can be read again.

        Raises ConfigurationError for what is not UTF-8; OSError passes through.
        """
        self._file = file
        self.keys: dict[str, int] = {key: number for number, key, _ in self._texts()}
        """Key -> number of the line, from 1, in the order of the lines."""

    @classmethod
    def open(cls, path: str, files: ExitStack) -> "BatchInput":
        """The requests of a path; what cannot be read twice, such as a pipe, is copied first.

        Raises ConfigurationError.
        """
        try:
            file: BinaryIO = files.enter_context(Path(path).open("rb"))  # noqa: SIM115  closed by files
            if not file.seekable():
                copy = files.enter_context(TemporaryFile())  # noqa: SIM115
                shutil.copyfileobj(file, copy)
                file = copy
            return cls(file)
        except OSError as err:
            raise ConfigurationError(
                f"-i {path} cannot be read ({err}); name a UTF-8 file with one JSON request per line"
            ) from err

    def lines(self, answered: Collection[str] = ()) -> Iterator[Line]:
        """The requests whose key is not among ``answered``; one is in memory at a time."""
        for number, key, text in self._texts():
            if key not in answered:
                yield _read_line(key, number, text)

    def _texts(self) -> Iterator[tuple[int, str, str]]:
        seen: Counter[bytes] = Counter()
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            try:
                text = (line.removeprefix(_BOM) if number == 1 else line).decode().strip()
            except UnicodeDecodeError as err:
                raise ConfigurationError(
                    f"line {number} of the batch file is not UTF-8 ({err}); save the file as UTF-8"
                ) from err
            if not text:
                continue
            digest = sha256(text.encode()).digest()[:16]
            seen[digest] += 1
            yield number, f"{_KEY}{digest.hex()}-{seen[digest]}", text


class BatchOutput:
    """The output file: a line is written when it ends, and all are put in order at the end.

    One process at a time holds the file. What an earlier run left in it counts, if it is an answer to
    a line of this input. Its errors are asked again, and leave the file at the end; a line that was
    torn off leaves it at once. What is no regular file, such as a pipe, is only written.
    """

    def __init__(self, path: Path, keys: Collection[str], files: ExitStack) -> None:
        """Open ``path`` and look through it; raises ConfigurationError."""
        self.path = path.resolve()
        self._places: dict[str, tuple[int, int]] = {}
        """Key -> where its line begins, and how many bytes it has."""
        self._end = 0
        self.failed = 0
        """Lines with an error among those written by this run."""
        try:
            self._regular = path.is_file() or not path.exists()
            self._file = files.enter_context(path.open("a+b" if self._regular else "wb"))
            if self._regular:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ConfigurationError(
                f"another vtr batch writes to -o {path}; wait for it, or name another file"
            ) from err
        except OSError as err:
            raise ConfigurationError(
                f"-o {path} cannot be written ({err}); name a file in a folder that is there"
            ) from err
        if self._regular:
            self._read_earlier(keys)

    @property
    def answered(self) -> Collection[str]:
        """Keys of the lines that have their output."""
        return self._places.keys()

    def write(self, key: str, text: str, failed: bool) -> None:
        """Append one line's output; it is with the system when this returns. OSError passes."""
        line = text.encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._places[key] = (self._end, len(line))
        self._end += len(line)
        self.failed += failed

    def finish(self, keys: Collection[str]) -> None:
        """Put the lines in the order of ``keys``, on disk, at once or not at all; OSError passes."""
        if not self._regular:
            return
        places = [self._places[key] for key in keys if key in self._places]
        ends = [begin + length for begin, length in places]
        if [begin for begin, _ in places] != [0, *ends][: len(places)] or ends[-1:] != [self._end]:
            self._rewrite(places)
        os.fsync(self._file.fileno())

    def _read_earlier(self, keys: Collection[str]) -> None:
        """Find the answers of an earlier run; raises ConfigurationError for a file of another kind."""
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):  # the earlier run was killed while it wrote
                self._file.truncate(self._end)
                break
            key, good = _read_output(line)
            if key is None or (good and key not in keys):
                raise ConfigurationError(
                    f"-o {self.path}:{number} answers no line of this input; name another file, or"
                    " remove this one"
                )
            if good:
                self._places[key] = (self._end, len(line))
            self._end += len(line)

    def _rewrite(self, places: list[tuple[int, int]]) -> None:
        """Let the file hold these parts of itself, one after another."""
        with whole_file_of_bytes(self.path) as file:
            shutil.copymode(self.path, file.name)
            for begin, length in places:
                self._file.seek(begin)
                file.write(self._file.read(length))


def _read_output(line: bytes) -> tuple[str | None, bool]:
    """The key of an output line of ours, None for any other; and whether it is an answer."""
    try:
        found = json.loads(line)
        key, status = found["id"], found["response"]["status_code"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None, False
    ours = isinstance(key, str) and key.startswith(_KEY)
    return key if ours else None, status == HTTPStatus.OK


def _read_line(key: str, number: int, text: str) -> Line:
    try:
        found = _Fields.model_validate_json(text)
    except ValidationError as err:
        return Line(
            key,
            _custom_id(text) or f"line-{number}",
            error=RequestError(
                f"line {number} of the batch file: {first_fault(err, given=True)}; a line is one JSON"
                f" object with custom_id, method POST, url (one of {', '.join(URLS)}) and body"
            ),
        )
    if found.body.get("stream"):
        return Line(
            key,
            found.custom_id,
            error=RequestError(
                f"line {number} of the batch file: stream is {show(found.body['stream'])}; a batch"
                " has no streams: leave stream out"
            ),
        )
    return Line(key, found.custom_id, found.url, json.dumps(found.body).encode())


def _custom_id(text: str) -> str | None:
    """The id of a line that is otherwise bad, so that its error can be told from the others."""
    try:
        given = json.loads(text)["custom_id"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return given if isinstance(given, str) else None
