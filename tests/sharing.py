"""How two processes share the tests (pytest-xdist, ``make test``).

A file goes to one process whole, so that what its fixtures start is started once. All files that ask
for the one server, or for the engines of one process, go to the same process together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from functools import cache
from typing import Any

import pytest

from tests.contract.source import ROOT

SHARED = {
    ":server": (("tests/",), "server"),
    # those of the families are gone before the next starts: a process has one engine at a time
    ":engines": (("tests/families/", "tests/vtr_vllm/engine/"), "loaded|engines"),
    ":pools": (("tests/vtr_vllm/search/",), "pools?|engine"),
}
"""Group -> the folders where its fixtures are, and their names."""
V2 = os.environ.get("VTR_TEST_RUNNER") == "v2"
if V2:
    del SHARED[":engines"]  # through Triton's interpreter, tests take longer than another engine
_ASKED = {
    name: re.compile(rf"(?:def test_\w+|@pytest\.fixture.*\ndef \w+)\([^)]*?\b(?:{names})\b[^)]*\)")
    for name, (_, names) in SHARED.items()
}


@cache
def _group(path: str) -> str:
    text = (ROOT / path).read_text()
    for name, (folders, _) in SHARED.items():
        if path.startswith(folders) and _ASKED[name].search(text):
            return name
    return path


def group(nodeid: str) -> str:
    """The group of a test: one of SHARED, or its file."""
    return _group(nodeid.partition("::")[0])


def is_with_its_group(nodeid: str, fixtures: Collection[str]) -> bool:
    """Whether a test that shares something, now that its fixtures are known, is where it belongs."""
    shared = (name for name, (folders, _) in SHARED.items() if nodeid.startswith(folders))
    return all(group(nodeid) == name for name in shared if name.removeprefix(":") in fixtures)


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Of pytest-xdist's controller: gives a process group after group, in the order collected.

    On runner V2 the file with the most tests goes first: it takes half of the time.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = V2
    return Groups(config, log)
