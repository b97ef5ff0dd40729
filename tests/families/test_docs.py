"""docs/models.md says what the table says."""

from __future__ import annotations

import pytest

from tests.families import docs
from tests.families.table import FAMILIES
from vtr_vllm.engine.common.supported_models import SUPPORTED_ARCHITECTURES, SUPPORTED_DECODERS


def test_the_page_is_what_the_generator_writes() -> None:
    text = docs.PAGE.read_text()
    assert docs.page(text) == text, "run: python -m tests.families.docs"


def test_a_page_without_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="families"):
        docs.page("# Models\n")


def test_what_is_supported_is_what_is_tested() -> None:
    assert {family.architecture for family in FAMILIES} == set(SUPPORTED_ARCHITECTURES)
    assert {family.decoder for family in FAMILIES} <= set(SUPPORTED_DECODERS)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
