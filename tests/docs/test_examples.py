"""Every shell and Python example of the texts runs, unless a marker before it says why not.

The marker is a comment, ``<!-- not run: REASON -->``, on the line before the block or the one before
that. Examples of a page run in order, in one folder that looks like the repository; its Python blocks
share their names.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.source import ROOT
from tests.docs.pages import PYTHON, SHELL, Block, blocks, texts
from tests.server.conftest import NAME, Server

SECONDS = 120
ADDRESS = "http://127.0.0.1:8000"
REPOSITORY = ("benchmarks", "deploy", "server", "tests", "vtr_vllm")
"""What the examples may name of it; what they write goes beside."""
LANGUAGES = SHELL | PYTHON | {"ini", "json", "promql", "text", "toml", "yaml"}

PAGES = {page: blocks(page, text) for page, text in texts().items()}
RUN = {
    page: [b for b in found if b.language in SHELL | PYTHON and b.not_run is None]
    for page, found in PAGES.items()
}
WITH_SERVER = sorted(page for page, found in RUN.items() if any(ADDRESS in b.text for b in found))
WITHOUT_SERVER = sorted(page for page, found in RUN.items() if found and page not in WITH_SERVER)

SLOW = {"docs/clients.md"}
"""It runs vLLM's own benchmark, twice the time of all the others."""


@pytest.mark.engine
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in WITH_SERVER],
)
def test_examples_that_ask_a_server(page: str, server: Server, tmp_path: Path) -> None:
    run_page(page, tmp_path, server.url)


@pytest.mark.parametrize("page", WITHOUT_SERVER)
def test_examples(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path, ADDRESS)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_block_names_its_language(page: str) -> None:
    assert [b.place for b in PAGES[page] if b.language not in LANGUAGES] == []


def test_what_is_not_run_says_why_and_is_sound(
    record_property: Callable[[str, object], None],
) -> None:
    """Shell that is not run is at least read by bash; what is skipped is in the report."""
    for block in (b for found in PAGES.values() for b in found if b.not_run is not None):
        record_property(block.place, block.not_run)
        print(f"{block.place}: {block.not_run}")
        assert block.language in SHELL | PYTHON, f"{block.place} is never run: drop its marker"
        if block.language in SHELL:
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        else:
            compile(block.text, block.place, "exec")


def test_a_failing_example_fails(tmp_path: Path) -> None:
    fails = "```sh\nfalse | true\n```\n", "```python\nassert 1 > 2\n```\n"
    for text in fails:
        with pytest.raises((subprocess.CalledProcessError, AssertionError)):
            run_blocks(blocks("page.md", text), tmp_path, ADDRESS)
    marked = "<!-- not run: no -->\n\n```sh\nfalse\n```\n"
    assert [b.not_run for b in blocks("page.md", marked)] == ["no"]


def run_page(page: str, folder: Path, url: str) -> None:
    """Run the examples of a page; ``url`` takes the place of the demo server's address."""
    (folder / ".venv").symlink_to(sys.prefix)
    for name in REPOSITORY:
        (folder / name).symlink_to(ROOT / name)
    PREPARE.get(page, lambda _: None)(folder)
    run_blocks(RUN[page], folder, url)


def run_blocks(found: list[Block], folder: Path, url: str) -> None:
    """Raises CalledProcessError, or what a Python block raises."""
    names: dict[str, Any] = {}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    before = Path.cwd()
    for block in found:
        text = block.text
        if url != ADDRESS:  # the tests' server has another address, and another name for its model
            text = text.replace(ADDRESS, url).replace('"demo"', f'"{NAME}"')
            text = text.replace("demo@", f"{NAME}@").replace("${2:-demo}", f"${{2:-{NAME}}}")
            text = text.replace("--model demo ", f"--model {NAME} ")
        if block.language in SHELL:
            script = ["bash", "-euo", "pipefail", "-c", text]
            environment = os.environ | {"PATH": path}
            done = subprocess.run(
                script, cwd=folder, env=environment, timeout=SECONDS, capture_output=True, text=True
            )
            print(block.place, done.stdout, done.stderr)
            done.check_returncode()
            assert '"error":' not in done.stdout, f"{block.place} was refused"
        else:
            os.chdir(folder)
            try:
                exec(compile(text, block.place, "exec"), names)
            finally:
                os.chdir(before)


def _calibration(folder: Path) -> None:
    """Data of each form that the page converts or loads."""
    from vtr_vllm.demo import sample
    from vtr_vllm.search.converters import from_demo

    from_demo("calibration", 200, folder / "calibration.jsonl")
    from_demo("test", 20, folder / "evaluation.jsonl")
    png = io.BytesIO()
    sample("test", 0).image.save(png, "PNG")
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes(png.getvalue())
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "this"}]
    llava = [{"id": "0", "image": "0.png", "conversations": said}]
    (folder / "llava.json").write_text(json.dumps(llava))
    image = base64.b64encode(png.getvalue()).decode()
    table = f"index\timage\tquestion\tanswer\n0\t{image}\tWhat?\tthis\n"
    (folder / "MMBench_DEV_EN.tsv").write_text(table)


def _schedules(folder: Path) -> None:
    """The page's own example of a file."""
    example = next(b for b in PAGES["docs/schedules.md"] if b.language == "json")
    (folder / "schedules").mkdir()
    (folder / "schedules" / "example.json").write_text(example.text)


PREPARE = {"docs/calibration.md": _calibration, "docs/schedules.md": _schedules}
