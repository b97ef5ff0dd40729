"""docs/gpu.md and README say what the results say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.arms import ROOT
from benchmarks.gpu_check import page


def test_the_page_is_what_the_generator_writes() -> None:
    assert page.PAGE.read_text() == page.page(page.load()), (
        "run: python -m benchmarks.gpu_check.page"
    )


def test_readme_has_the_sentence() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert page.readme_sentence() in readme


def test_without_results_nothing_is_claimed(tmp_path: Path) -> None:
    assert page.readme_sentence(tmp_path) == page.NOT_RUN_SENTENCE
    assert page.page(page.load(tmp_path)).endswith("Not run yet.\n")


def finding(name: str, ok: bool | None, **numbers: object) -> dict[str, object]:
    return {"stage": "", "name": name, "ok": ok, "text": "text", "numbers": numbers, "at_s": 0.0}


def test_what_is_wrong_stands_out() -> None:
    row = finding("way: fastv-0.25", False, way="way", check="fastv-0.25", within=3, total=8)
    assert page.right_table([row])[-1] == "| way | **3 of 8, no** |"
    assert page.right_table([finding("way, vtr", False, way="way", check="started vtr")])[-1].count(
        "no"
    )


def test_a_stage_that_did_not_run_is_said_to_be_missing() -> None:
    results = {
        "gpu": "A1 of torch",
        "stages": {
            "environment": {
                "meta": {"date": "a day", "commit": "a commit"},
                "outcome": "ok",
                "findings": [finding("card", None, card="A1")],
            }
        },
    }
    shown = page.section(results)
    assert shown.startswith("## A1\n")
    assert shown.count("Not run yet.") == 5
