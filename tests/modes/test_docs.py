"""The page says what the table says, and the table names tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.modes import docs
from tests.modes.table import REFUSED_REQUESTS, WORKS

TESTS = Path(__file__).parents[1]


def test_the_page_is_what_the_generator_prints() -> None:
    assert docs.PAGE.read_text() == docs.page(), "run python -m tests.modes.docs"


@pytest.mark.parametrize("proof", sorted({line.proof for line in (*WORKS, *REFUSED_REQUESTS)}))
def test_every_proof_exists(proof: str) -> None:
    file, _, name = proof.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
