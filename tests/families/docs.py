"""Writes the generated parts of docs/models.md: ``python -m tests.families.docs``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tests.families.family import Family
from tests.families.survey import Row, survey
from tests.families.table import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
PART = re.compile(r"(<!-- (\w+): generated -->\n).*?(<!-- end -->)", re.DOTALL)
Rows = Iterable[tuple[str, ...]]


def table(head: tuple[str, ...], rows: Rows) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def family_row(family: Family) -> tuple[str, ...]:
    return (
        f"`{family.name}`",
        f"`{family.architecture}`",
        f"`{family.decoder}`",
        family.tower,
        "images, video" if family.video else "images",
        names(family.hub) or "none well known",
    )


def refused_row(row: Row) -> tuple[str, ...]:
    return f"`{row.architecture}`", names(row.decoders), row.reason


def names(found: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in found)


def parts() -> dict[str, str]:
    """The generated parts of the page by their names."""
    head = ("family", "vLLM's class", "decoder", "tower", "takes", "on the hub")
    refused = (refused_row(row) for row in survey() if row.status == "refused")
    return {
        "families": table(head, map(family_row, FAMILIES)),
        "refused": table(("vLLM's class", "decoder", "why not"), refused),
    }


def page(text: str) -> str:
    """A page with its generated parts written anew; every part must be there."""
    written = parts()
    there = [match[2] for match in PART.finditer(text)]
    if there != list(written):
        raise ValueError(f"{PAGE.name} has the generated parts {there}, not {list(written)}")
    return PART.sub(lambda match: match[1] + written[match[2]] + match[3], text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
