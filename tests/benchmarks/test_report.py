"""The tables are computed from the rounds of a results file."""

from __future__ import annotations

from typing import Any

from benchmarks.report import (
    footnotes,
    heading,
    measured,
    percentile,
    prefill_table,
    rounds_run,
    serve_table,
    spread,
    stage_table,
)
from benchmarks.worker import Flight, summary


def arm(wall: float, kv: int) -> dict[str, float]:
    return {
        "wall_s": wall,
        "cpu_s": 2 * wall,
        "requests": 4,
        "requests_per_s": 4 / wall,
        "ttft_median_s": wall / 4,
        "itl_mean_s": wall / 100,
        "kv_peak_bytes": kv * 2**20,
        "foreign_cores": 0.01,
    }


def pair(scenario: str, stock: float, vtr: float) -> dict[str, Any]:
    return {
        "scenario": scenario,
        "concurrency": 4,
        "budget": 0.5,
        "schedule": "p-sigmoid-0.5",
        "output_tokens": 8,
        "same_tokens": 0.0,
        "stock": arm(stock, 10),
        "vtr": arm(vtr, 6),
    }


def test_ratios_are_medians_of_the_rounds_own_ratios() -> None:
    rounds = [pair("prefill", 2.0, 1.0), pair("prefill", 9.0, 3.0), pair("prefill", 1.0, 1.0)]
    facts = {"predicted": {"0.5": 2.5}, "predicted_decoder": {"0.5": 3.0}}
    row = prefill_table(facts, rounds).splitlines()[-1]
    assert "| 2.00 [1.00, 3.00] |" in row
    assert "| 2.50 | 0.80 | unknown" in row
    assert stage_table(rounds) == ""
    for found in rounds:
        for name in ("stock", "vtr"):
            found[name] |= {"tower_s": 0.3, "render_s": 0.2}
    row = prefill_table(facts, rounds).splitlines()[-1]
    assert row.endswith("| 3.00 [1.00, 3.40] | 3.00 | 1.00 |")
    row = stage_table(rounds).splitlines()[-1]
    assert row == "| 4 | 0.5 | 50 | 75 | 375 | 50 | 75 | 125 |"


def test_serving_ratios_above_one_mean_that_vtr_is_faster() -> None:
    row = serve_table([pair("serve", 2.0, 1.0)]).splitlines()[-1].split(" | ")
    throughput, ttft, itl, kv = row[4], row[7], row[10], row[13]
    assert throughput == ttft == itl == "2.00 [2.00, 2.00]"
    assert kv.startswith("0.60 ")


def test_page_faults_are_those_of_a_request() -> None:
    rounds = [pair("prefill", 2.0, 1.0), pair("prefill", 2.0, 1.0)]
    assert "page faults" not in footnotes(rounds)
    for found in rounds:
        found["stock"]["page_faults"], found["vtr"]["page_faults"] = 4000, 80
    assert "took 1000 page faults in stock, 20 in VTR" in footnotes(rounds)


def test_the_heading_names_what_changes_what_is_measured() -> None:
    options = {"form": "images", "take_turns": True, "threads": None, "rates": [1, 2], "kv_mib": 0}
    meta = {"date": "then", "gpu": None, "cpu": "a CPU", "cores": 2, "commit": "0"}
    text = measured(meta | {"options": options}, "form", "take_turns", "threads", "rates", "kv_mib")
    assert text == (
        "Measured then on a CPU, 2 cores, commit 0, form images, take turns yes, rates 1 2, kv mib 0."
    )
    older = heading(meta | {"gpu": "a GPU", "rounds": 3})
    assert older.startswith("Measured then on a GPU, commit 0. 3 round(s) asked. Cells")


def test_rounds_are_those_that_ran() -> None:
    """A run whose time was over in the second round has one cell of two rounds."""
    rounds = [pair("prefill", 2.0, 1.0), pair("serve", 2.0, 1.0), pair("prefill", 2.0, 1.0)]
    assert rounds_run(rounds) == "1 to 2 rounds of a cell"
    assert rounds_run(rounds[:2]) == "1 round(s)"
    assert rounds_run([]) == "0 round(s)"


def test_spread() -> None:
    assert spread([{"a": 3}, {"a": 1}, {"a": 2}], lambda p: p["a"]) == (2, 1, 3)


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(n) for n in range(1, 21)]
    assert percentile(values, 0.95) == 19
    assert percentile(values, 0.5) == 10
    assert percentile([7.0], 0.95) == 7


def test_the_slowest_of_twenty_is_beyond_the_95th_percentile() -> None:
    found = summary([Flight(0.0, [1], [float(n)]) for n in range(1, 21)], wall=1.0)
    assert found["ttft_p95_s"] == 19


def test_latencies_are_taken_per_request() -> None:
    flights = [Flight(0.0, [1, 2], [1.0, 1.5]), Flight(2.0, [3, 4], [2.5, 4.0])]
    found = summary(flights, wall=4.0)
    assert found["requests_per_s"] == 0.5
    assert found["ttft_median_s"] == 0.75
    assert found["itl_mean_s"] == 1.0
