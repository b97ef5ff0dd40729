"""Files and functions stay short enough to be read in one go."""

from __future__ import annotations

import pytest

from tests.contract.sizes import FILE_LINES, FUNCTION_LINES, too_long
from tests.contract.source import code_files


def test_files_and_functions_are_short() -> None:
    assert too_long(code_files()) == []


@pytest.mark.parametrize("opening", ["def long():", "async def long():"])
def test_a_long_function_is_found(opening: str) -> None:
    line = "    pass\n"
    assert len(too_long({"a.py": f"{opening}\n{line * (FUNCTION_LINES - 1)}"})) == 1
    assert too_long({"a.py": f"{opening}\n{line * (FUNCTION_LINES - 2)}"}) == []


def test_a_long_method_is_found() -> None:
    body = "        pass\n" * FUNCTION_LINES
    assert len(too_long({"a.py": f"class A:\n    def long(self):\n{body}"})) == 1


def test_a_long_file_is_found() -> None:
    assert len(too_long({"a.py": "x = 1\n" * FILE_LINES})) == 1
    assert too_long({"a.py": "x = 1\n" * (FILE_LINES - 1)}) == []
