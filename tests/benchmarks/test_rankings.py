"""Rankings are compared as they are defined, and pairs of schedules differ in the rules only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.rankings import (
    ATTENTION_RULES,
    Pair,
    attention_scores,
    blind_scores,
    describe,
    draw,
    in_top,
    overlap_matrix,
    paired_interval,
    pairs,
    rank_once,
    render,
    tau_matrix,
)
from vtr_vllm.demo.world import KINDS
from vtr_vllm.schedules import ModelGeometry, p_sigmoid

GEOMETRY = ModelGeometry(12, 128, 320, 2, 2, 64)


def test_tau_of_known_rankings() -> None:
    """Of four tokens there are six pairs; one swapped pair gives (5 - 1) / 6, a tie tau-b's root."""
    scores = np.array([[4.0, 3, 2, 1], [40, 30, 20, 10], [1, 2, 3, 4], [4, 3, 1, 2], [4, 3, 2, 2]])
    tau = tau_matrix(scores)
    assert tau[0] == pytest.approx([1, 1, -1, 4 / 6, 5 / (6 * 5) ** 0.5])
    assert np.array_equal(tau, tau.T)


def test_attention_scores_are_the_rules_of_the_package() -> None:
    """One layer, two heads; rows: text, two vision tokens, two of the instruction."""
    attention = torch.zeros(1, 1, 2, 5, 5)
    attention[0, 0, 0, 4, 1:3] = torch.tensor([0.8, 0.2])
    attention[0, 0, 1, 4, 1:3] = torch.tensor([0.0, 0.4])
    attention[0, 0, 0, 3, 1:3] = torch.tensor([0.0, 1.0])
    found = attention_scores(attention, torch.tensor([False, True, True, False, False]))
    assert found["last"][0, 0].tolist() == pytest.approx([0.4, 0.3])
    assert found["last-max"][0, 0].tolist() == pytest.approx([0.8, 0.4])
    assert found["instruction"][0, 0].tolist() == pytest.approx([0.2, 0.4])


def test_blind_scores_rank_what_stands_out() -> None:
    embeddings = torch.zeros(6, 3)
    embeddings[4] = 2.0
    found = blind_scores(embeddings, torch.arange(6.0))
    assert found["saliency"].shape == (1, 6)
    assert found["saliency"].argmax() == 4
    assert found["cls"].argmax() == 5


def test_the_top_is_what_a_cut_would_keep() -> None:
    scores = np.array([[0.0, 5, 1, 5, 2, 0], [9, 1, 8, 1, 1, 1]])
    kept = in_top(scores, 0.5)
    assert kept.tolist() == [[0, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    assert overlap_matrix(kept) == pytest.approx(np.array([[1, 1 / 3], [1 / 3, 1]]))


def test_pairs_have_equal_counts_and_differ_after_the_first_cut() -> None:
    for pair in pairs(GEOMETRY):
        assert pair.once.counts(144) == pair.each.counts(144)
        assert pair.once.budget == pair.each.budget == pair.budget
        assert {str(rule) for rule in pair.each.rules} == {"last"}
        assert [str(rule) for rule in pair.once.rules[1:]] == ["previous"] * (
            len(pair.each.cuts) - 1
        )
        assert pair.once.rules[0] == pair.each.rules[0]


def test_paired_interval() -> None:
    """Ten wins and no loss of a hundred: the binomial quantiles of a share of .1, near enough."""
    gain = np.array([1.0] * 10 + [0.0] * 90)
    assert paired_interval(gain) == pytest.approx((0.05, 0.16), abs=0.011)
    assert paired_interval(np.zeros(50)) == (0.0, 0.0)


def comparison(budget: float) -> dict[str, Any]:
    schedule = p_sigmoid(GEOMETRY, budget)
    kinds = np.array([*KINDS, *KINDS])
    each = np.ones(len(kinds), dtype=np.bool_)
    once = kinds != KINDS[1]
    return describe(Pair("p-sigmoid", budget, schedule, rank_once(schedule)), each, once, kinds)


def test_a_comparison_says_where_the_gain_is() -> None:
    found = comparison(0.5)
    assert (found["each"], found["once"]) == (1.0, 0.8)
    assert found["gain"] == pytest.approx(0.2)
    assert found["low"] < found["gain"] < found["high"]
    assert found["gain_by_kind"] == dict.fromkeys(KINDS, 0.0) | {KINDS[1]: 1.0}
    assert found["cuts"] == {"2": 126, "5": 53, "8": 9}


def layers() -> dict[str, Any]:
    tau = [[1.0, 0.1, 0.2], [0.1, 1.0, 0.75], [0.2, 0.75, 1.0]]
    return {
        "tau": dict.fromkeys(ATTENTION_RULES, tau),
        "tau_half_interval": dict.fromkeys(ATTENTION_RULES, 0.01),
        "overlap": dict.fromkeys(ATTENTION_RULES, tau),
        "targets": {"last": {"0.1": [0.1, 0.2, 0.3]}, "cls": {"0.1": [0.4]}},
    }


def test_tables() -> None:
    """Every row has its header's columns; a form of one cut is not shown as a difference."""
    meta = {"date": "then", "cpu": "a CPU", "commit": "0", "split": "test", "samples": 3, "n": 10}
    compared = [comparison(0.75), comparison(0.5)]
    engine = {"dtype": "float32", "full": 0.99, "pairs": compared}
    text = render({"meta": meta, "layers": layers(), "engine": engine})
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| `last` | 0.35 | 0.75 | 0.75 | 0.10 | 0.75 | 1 of 3 | 0.35 | ±0.010 |" in text
    assert "| `cls` | 10% | 0.40 |  |  |" in text
    one_cut, three_cuts = (line for line in text.splitlines() if line.startswith("| p-sigmoid"))
    assert "one cut: the same" in one_cut
    assert "+0.200 [" in three_cuts


def test_heat_map(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tau.png"
    draw(layers(), path)
    image = Image.open(path).convert("RGB")
    assert image.width > image.height > 100
    assert len(image.getcolors(1 << 20) or []) > 10
    assert path.stat().st_size < 100_000
