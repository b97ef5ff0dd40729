"""The report's page, and the table for the docs."""

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageStat

from tests.vtr_vllm.search.report_records import (
    BASELINES,
    BUDGETS,
    OURS,
    as_read,
    frontier_record,
    scored,
    search_record,
)
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.search.report import cost_table, frontier_table, kinds_table, write_report

FIGURES = {"keep-rates.png", "frontier.png", "flops.png", "trials.png", "cost.png"}
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a reader of a page gets: tags with their attributes, tables, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag  # every tag is closed, and in order

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def values(self, tag: str, attribute: str) -> list[str | None]:
        return [attrs[attribute] for name, attrs in self.tags if name == tag and attribute in attrs]

    def line(self, column: str, head: str) -> list[str]:
        """Return the line that begins with ``head``, of the first table with such a column."""
        table = next(table for table in self.tables if column in table[0])
        return next(line for line in table if line[0] == head)


def report(folder: Path, search: Any, frontier: Any = None) -> Page:
    (folder / "search.json").write_text(json.dumps(search))
    if frontier is not None:
        (folder / "frontier.json").write_text(json.dumps(frontier))
    page = write_report(folder)
    assert page == folder / "index.html"
    read = Page(page.read_text())
    assert read.open == []
    return read


@dataclass(frozen=True)
class Written:
    """A report, for tests that only read it."""

    folder: Path
    page: Page


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """With all that there may be."""
    folder = tmp_path_factory.mktemp("full")
    return Written(folder, report(folder, search_record(), frontier_record()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Of a search that was not compared."""
    folder = tmp_path_factory.mktemp("alone")
    return Written(folder, report(folder, search_record()))


def test_a_full_report_has_every_figure_and_says_nothing_is_missing(full: Written) -> None:
    page = full.page
    assert set(page.values("img", "src")) == FIGURES
    assert all(page.values("img", "alt"))
    assert "missing" not in page.values("p", "class")
    for name in FIGURES:
        with Image.open(full.folder / name) as image:
            assert min(ImageStat.Stat(image.convert("RGB")).var) > 100


def test_the_page_says_what_was_searched_and_found(full: Written) -> None:
    search, page = search_record(), full.page
    meta = search["meta"]
    for fact in (meta["model"], meta["fingerprint"], meta["command"], meta["date"], "vllm 0.32.0"):
        assert fact in page.text
    assert meta["data"]["sha256"] in page.text
    assert "99.0% [97.1, 99.7]" in page.text
    found = page.line("rank rules", "descent-0.5")
    assert found[1] == "0.5"
    assert found[3:5] == ["92.5 [85.0, 97.0]", "0.91"]
    assert found[5].startswith("1.000 ×2, 0.500 ×3")
    assert found[6] == "last, previous"
    assert page.line("layer", "2") == ["2", "132", "0.920", "0.960", "99.1", "0.98", "7"]
    cost = ["g-search", "70", "12", "30", "21,000", "84,000", "210.0", "93%"]
    assert page.line("stage", "g-search") == cost


def test_the_trial_that_was_taken_is_shown_of_each_budget(alone: Written) -> None:
    """Which on all items may be another than the one of the greatest value on a few."""
    search, page = search_record(), alone.page
    lines = [line for table in page.tables for line in table if line[:2] == ["p-sigmoid", "0.25"]]
    own = [t for t in search["trials"] if t["search"] == "p-sigmoid" and t["budget"] == 0.25]
    (best,) = (trial for trial in own if trial["taken"])
    assert best != max(own, key=lambda trial: trial["value"])
    (line,) = lines
    assert line[2:4] == ["40", f"{best['value']:.4g}"]
    assert line[5] == str(best["order"] + 1)
    assert line[6].startswith(f"k = {best['parameters']['k']:.4g}, alpha = ")


def test_the_comparison_is_shown_with_what_is_not_reachable(full: Written) -> None:
    frontier, page = frontier_record(), full.page
    heads = ["method", "1", "0.75", "0.5", "0.375", "0.25", "0.125"]
    grids = [table for table in page.tables if table[0] == heads]
    assert len(grids) == len(frontier["meta"]["splits"])
    assert [line[0] for line in grids[0][1:]] == ["full", *BASELINES, *OURS]
    fastv = next(line for line in grids[0] if line[0] == "fastv")
    row = next(row for row in frontier["rows"] if row["name"] == "fastv-0.5")
    score = row["splits"]["test"]
    assert fastv[1] == ""
    assert fastv[3].startswith(f"{100 * score['score']:.1f} [")
    assert fastv[6] == "–"
    assert "fastv-0.125: the first cut is before layer 2" in page.text
    difference = score["minus_full"]["difference"]
    assert page.line("less unreduced", "fastv-0.5")[4].startswith(f"{100 * difference:+.1f} [")


def test_without_a_comparison_the_page_says_so(alone: Written) -> None:
    page = alone.page
    assert set(page.values("img", "src")) == FIGURES - {"frontier.png", "flops.png"}
    assert "this folder has no frontier.json" in page.text
    assert not (alone.folder / "frontier.png").exists()


def test_a_search_that_found_nothing_yet_has_no_figure_of_an_earlier_one(tmp_path: Path) -> None:
    report(tmp_path, search_record(), frontier_record())
    (tmp_path / "frontier.json").unlink()
    empty = {key: [] for key in ("g_search", "schedules", "trials", "cost")}
    page = report(tmp_path, search_record() | empty)
    assert page.values("img", "src") == []
    assert page.values("p", "class") == ["missing"] * 5
    assert list(tmp_path.glob("*.png")) == []


def test_optional_facts_may_be_absent(tmp_path: Path) -> None:
    search, frontier = search_record(), frontier_record()
    search["schedules"][0]["budget"] = None
    del frontier["meta"]["command"], frontier["meta"]["date"]
    for row in frontier["rows"]:
        for score in row["splits"].values():
            del score["logp"], score["minus_full"], score["kinds"]
    page = report(tmp_path, search, frontier)
    assert page.line("rank rules", "g-search-0.75")[1] == ""
    assert page.line("less unreduced", "fastv-0.5")[4:] == ["", "", ""]
    assert "None" not in page.text


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
    search, frontier = (poison(r, attack) for r in (search_record(), frontier_record()))
    frontier["meta"]["splits"] = {attack: frontier["meta"]["splits"]["test"]}
    for row in frontier["rows"]:
        row["splits"] = {attack: row["splits"]["test"]} if row["reachable"] else {}
        row["method"] += attack
    frontier["meta"]["fingerprint"] = search["meta"]["fingerprint"]
    page = report(tmp_path, search, frontier)
    assert "script" not in {tag for tag, _ in page.tags}
    assert set(page.values("img", "src")) <= FIGURES
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert page.text.count(attack) > 100


def poison(value: Any, attack: str) -> Any:
    """Return a record with every text in it followed by the attack."""
    if isinstance(value, str):
        return value + attack
    if isinstance(value, list):
        return [poison(item, attack) for item in value]
    if isinstance(value, dict):
        return {key: poison(item, attack) for key, item in value.items()}
    return value


def test_the_page_needs_nothing_from_elsewhere(full: Written) -> None:
    page = full.page
    text = (full.folder / "index.html").read_text()
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    style = re.search(r"<style>(.*)</style>", text, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "prefers-color-scheme: dark" in style[1]
    assert "width=device-width, initial-scale=1" in page.values("meta", "content")
    assert text.startswith("<!DOCTYPE html>")


def test_a_comparison_on_another_model_is_refused(tmp_path: Path) -> None:
    frontier = frontier_record()
    frontier["meta"]["fingerprint"] = "32L-4096h-11008i-32q-32kv-128d"
    with pytest.raises(ConfigurationError, match="measured on 32L.*ran on 12L.*compare"):
        report(tmp_path, search_record(), frontier)
    assert not (tmp_path / "index.html").exists()


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="search.json.*run a search into this folder"):
        write_report(tmp_path)


def test_the_table_is_exactly_this() -> None:
    frontier = frontier_record()
    frontier["meta"]["splits"].pop("shifted")
    scores = {"full": 0.99, "fastv": 0.71449, "descent": 0.95}
    rows = [row for row in frontier["rows"] if row["budget"] in (1, 0.5, 0.125)]
    frontier["rows"] = [row for row in rows if row["method"] in scores]
    for row in frontier["rows"]:
        if row["reachable"]:
            row["splits"] = {"test": scored(scores[row["method"]] - 0.001 * (row["budget"] == 0.5))}
    frontier["rows"][-1]["splits"] = {}
    assert frontier_table(as_read(frontier)) == (
        "Split `test`, 1,000 questions, 95% intervals:\n\n"
        "| method | 1 | 0.5 | 0.125 |\n|---|---|---|---|\n"
        "| full | 99.0 [97.0, 100.0] |  |  |\n"
        "| fastv |  | 71.3 [69.3, 73.3] | – |\n"
        "| descent |  | **94.9 [92.9, 96.9]** |  |\n"
    )


def test_kinds_are_told_of_what_is_served() -> None:
    frontier = frontier_record()
    frontier["rows"] = [row for row in frontier["rows"] if row["splits"]][:2]
    for row, name, score in zip(frontier["rows"], ("full", "searched"), (0.99, 0.9), strict=True):
        row["method"], row["name"] = name, f"the {name}"
        row["splits"] = {"shifted": scored(score)}
    assert kinds_table(as_read(frontier)) == (
        "Split `shifted`, by kind:\n\n"
        "| schedule | color (200) | where (800) |\n|---|---|---|\n"
        "| the full | 99.0 | 99.0 |\n"
        "| the searched | 90.0 | 90.0 |\n"
    )
    for row in frontier["rows"]:
        row["splits"]["shifted"]["kinds"] = None
    assert kinds_table(as_read(frontier)) == ""


def test_a_family_that_is_known_is_a_column() -> None:
    frontier = frontier_record()
    for row in frontier["rows"]:
        local = row["method"] == "uniform" or (row["method"], row["budget"]) == ("descent", 0.5)
        row["family"] = None if row["method"] == "full" else "local" if local else "guided"
    lines = frontier_table(as_read(frontier)).splitlines()
    assert lines[2].startswith("| method | family | 1 |")
    shown = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines[4:12]}
    assert (shown["full"], shown["uniform"], shown["fastv"]) == ("", "local", "guided")
    assert any(line.startswith("| descent | guided, local |") for line in lines)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=len(OURS) * len(BUDGETS)))
def test_exactly_the_best_of_a_column_are_bold(draws: list[float]) -> None:
    frontier = frontier_record()
    ours = [row for row in frontier["rows"] if row["method"] in OURS]
    frontier["rows"] = ours
    for row, score in zip(ours, draws, strict=False):
        row["splits"] = {"test": scored(score)}
    lines = frontier_table(as_read(frontier)).split("Split `shifted`")[0].splitlines()[4:-1]
    cells = {
        (line.split("|")[1].strip(), i): c
        for line in lines
        for i, c in enumerate(line.split("|")[2:-1])
    }
    for column, budget in enumerate(BUDGETS):
        of_budget = {
            r["method"]: r["splits"]["test"]["score"] for r in ours if r["budget"] == budget
        }
        best = max(of_budget.values())
        bold = {method for method in of_budget if "**" in cells[method, column]}
        assert bold == {method for method, score in of_budget.items() if score == best}


def test_unreduced_is_no_rival_in_its_column() -> None:
    frontier = frontier_record()
    full, other = frontier["rows"][0], frontier["rows"][-1]
    frontier["rows"] = [full, other | {"budget": 1.0, "splits": {"test": scored(0.5)}}]
    table = frontier_table(as_read(frontier))
    assert "| searched | **50.0 [48.0, 52.0]** |" in table
    assert "| full | 99.0 [97.0, 100.0] |" in table


def test_a_budget_of_its_own_is_a_line_and_not_a_column() -> None:
    frontier = frontier_record()
    row = dict(frontier["rows"][-1], method="lossless", name="lossless", budget=0.313)
    row |= {"mean_keep": 0.313, "flops_fraction": 0.34, "reachable": True}
    row["splits"] = {"test": scored(0.98)}
    frontier["rows"].append(row)
    table = frontier_table(as_read(frontier))
    assert "0.313 |" not in table.split("At mean keep rates of their own")[0]
    assert "| lossless | 0.313 | 0.340 | 98.0 [96.0, 100.0] |" in table


def test_the_cost_of_every_stage_is_a_line() -> None:
    record = search_record()
    lines = cost_table(record).splitlines()
    assert len(lines) == 2 + len(record["cost"])
    for line, cost in zip(lines[2:], record["cost"], strict=True):
        assert line.startswith(f"| {cost['stage']} | {cost['evaluations']} |")
        assert f"| {cost['requests']:,} | {cost['naive_requests']:,} |" in line
