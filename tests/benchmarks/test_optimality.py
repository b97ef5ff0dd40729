"""Exhaustive search looks at every curve, and says whether G-Search is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.optimality import (
    candidate,
    cost,
    evaluate_all,
    joint_minimum,
    measure,
    never_rising,
    parse,
    render,
    reversals,
)
from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study

META = {
    "date": "today",
    "cpu": "a CPU",
    "commit": "abc",
    "items": 100,
    "starts": (2, 4),
    "grain": 4,
    "tolerance": 0.05,
}


def test_every_curve_that_never_rises_is_listed_once() -> None:
    found = never_rising([0, 1, 2], 2)
    assert sorted(found) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert len(never_rising(range(0, 145, 36), 4)) == 70


def test_the_last_stage_has_the_layers_that_are_left() -> None:
    assert cost((8, 4, 1), (2, 4, 5), 9) == 2 * 8 + 4 + 4 * 1
    found = candidate((8, 4, 4), (2, 4, 5), 9, 8)
    assert [rate * 8 for rate in found.keep] == [8, 8, 8, 8, 4, 4, 4, 4, 4]
    assert [str(rule) for rule in found.rules] == ["last"]


def test_a_reversal_is_a_pass_that_more_tokens_turn_into_a_failure() -> None:
    vectors = never_rising([0, 1, 2], 2)
    assert not list(reversals(vectors, {(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}))
    turned = reversals(vectors, {(1, 0), (2, 1), (2, 2)})
    assert sorted(turned) == [((1, 0), (1, 1)), ((1, 0), (2, 0))]


def test_the_joint_minimum_takes_each_stage_by_itself() -> None:
    assert joint_minimum({(2, 0), (1, 1), (2, 2)}) == (1, 0)


class OwnNeeds(SimulatedEvaluator):
    """The paper's assumption: each layer needs its own number of tokens, whatever the rule."""

    def quality(self, rule: Any, layer: int) -> float:
        return 1.0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    searched = study(OwnNeeds(6, (16,)), items(tmp_path_factory.mktemp("optimality"), 100))
    return measure(searched, (2, 4), 4, 0.0075)


def test_under_the_papers_assumption_the_claim_holds(found: dict[str, Any]) -> None:
    good = [row for row in found["rows"] if row["passes"]]
    assert len(found["rows"]) == 15
    assert 0 < len(good) < 15
    assert good[0]["cost"] == found["greedy_cost"]
    assert good[0]["counts"] == found["greedy"] == found["joint_minimum"]
    assert found["reversals"] == []
    for row in good:
        assert row["value"] >= found["floor"]
        assert row["items"] == 100


def test_the_table_lists_what_is_as_cheap_as_g_search(found: dict[str, Any]) -> None:
    text = render({"meta": META, "found": found})
    assert f"G-Search's cost {found['greedy_cost']} equals the least of them" in text
    table = [line for line in text.splitlines() if line.startswith("| (")]
    assert len(table) == 1
    assert table[0].startswith(f"| {found['greedy']} | {found['greedy_cost']} |")
    assert table[0].endswith("| G-Search |")
    assert "a curve that passes; 0 pairs" in text


def test_the_table_shows_what_is_cheaper(found: dict[str, Any]) -> None:
    row = dict(found["rows"][0], passes=True, cost=0)
    worse = dict(found, rows=[row, *found["rows"]])
    text = render({"meta": META, "found": worse})
    assert f"G-Search's cost {found['greedy_cost']} is above the least of them, 0" in text
    assert sum(line.startswith("| (") for line in text.splitlines()) == 2


def test_the_table_tells_where_g_search_is_below_the_list(found: dict[str, Any]) -> None:
    rows = [dict(row, passes=row["cost"] > found["greedy_cost"]) for row in found["rows"]]
    text = render({"meta": META, "found": dict(found, rows=rows)})
    assert f"G-Search's cost {found['greedy_cost']} is below the least of them" in text


def test_no_curve_may_pass(found: dict[str, Any]) -> None:
    none = [dict(row, passes=False) for row in found["rows"]]
    text = render(
        {"meta": META, "found": dict(found, rows=none, joint_minimum=joint_minimum(set()))}
    )
    assert f"0 of {len(none)} curves are within the tolerance. G-Search's cost is" in text


def test_where_the_grain_does_not_divide_the_tokens_all_of_them_are_a_level(tmp_path: Path) -> None:
    searched = study(OwnNeeds(6, (14,)), items(tmp_path, 20))
    scored = evaluate_all(searched, (2, 4), 4, 0.0)
    assert (14, 14) in scored
    assert sorted({count for counts in scored for count in counts}) == [0, 4, 8, 12, 14]


def test_a_folder_must_be_given() -> None:
    with pytest.raises(SystemExit):
        parse([])
    assert parse(["--folder", "data"]).folder == Path("data")
