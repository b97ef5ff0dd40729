"""Writes docs/support.md: ``python -m tests.modes.docs``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.modes.refusals import refusal_of
from tests.modes.table import REFUSED, REFUSED_REQUESTS, UNTESTED, WORKS
from vtr_vllm.engine.worker.attention import BACKENDS, check_backends
from vtr_vllm.errors import ConfigurationError

PAGE = Path(__file__).parents[2] / "docs" / "support.md"

_HEAD = """\
# Serving modes

Every way in which vLLM serves a model, and what it does to reduced requests. Generated from the table
that the tests run (`python -m tests.modes.docs`); edit `tests/modes/table.py`, not this page. Models:
[models.md](models.md).

## Works

A batch of mixed budgets, text alone among it, gives the same tokens as the plain engine, unless the note
says otherwise. `make test-modes` runs those under `modes/`.
"""

_REFUSED = """\
## Refused at start-up

By name, before any weight is loaded. vLLM itself does not take some of them on every platform.
"""

_REQUESTS = """\
## Refused by request

With status 400, on reduced requests only: at budget 1.0 each works as in vLLM.
"""

_UNTESTED = """\
## Not tested

Nothing is known against these; no test here shows them either.
"""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def backend_refusal() -> tuple[str, str, str]:
    """The line of an attention backend that is not let through."""
    flags = f"`--attention-backend`, all but {', '.join(f'`{name}`' for name in BACKENDS)}"
    why = "its builder may keep one plan for all segments of a band"
    try:
        check_backends({"FLASHINFER"})
    except ConfigurationError as err:
        return flags, why, str(err)
    raise AssertionError("FLASHINFER is not refused")


def page() -> str:
    """The whole page."""
    works = [(line.name, line.flags, f"`{line.proof}`", line.note) for line in WORKS]
    refused = [(line.flags, line.why, refusal_of(line)) for line in REFUSED] + [backend_refusal()]
    requests = [(line.name, line.why, f"`{line.proof}`") for line in REFUSED_REQUESTS]
    untested = [(line.name, line.flags, line.why) for line in UNTESTED]
    parts = [
        _HEAD,
        table(("mode", "flags", "test", ""), works),
        _REFUSED,
        table(("flags", "why", "error"), refused),
        _REQUESTS,
        table(("asked for", "why", "test"), requests),
        _UNTESTED,
        table(("mode", "flags", ""), untested),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
