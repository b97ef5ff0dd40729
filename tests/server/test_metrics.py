"""Counters, and labels from fixed sets."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from server.metrics import observe_answer, observe_refusal
from server.protocol import Facts
from vtr_vllm.errors import InvalidBudget


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def told(budget: float, source: str = "p-sigmoid default") -> Facts:
    return Facts(
        budget=budget,
        schedule=f"p-sigmoid-{budget}",
        source=source,
        vision_tokens=100,
        kept_per_layer=[100, 100, 20, 20],
        mean_keep=0.6,
        flops_fraction=0.5,
    )


def test_an_answer_counts_tokens_and_their_layers() -> None:
    names = [f"vtr_vision_token{part}_total" for part in ("s", "_layers", "_layers_kept")]
    before = [value(name) for name in names]
    observe_answer(told(0.6))
    grown = [value(name) - old for name, old in zip(names, before, strict=True)]
    assert grown == [100, 400, 240]


@pytest.mark.parametrize(
    ("budget", "label"),
    [
        (1e-9, "0.0625"),
        (0.125, "0.125"),
        (0.1250001, "0.1875"),
        (0.25, "0.25"),
        (0.3, "0.375"),
        (0.95, "1.0"),
        (1.0, "1.0"),
    ],
)
def test_a_budget_is_counted_under_the_upper_end_of_its_tier(budget: float, label: str) -> None:
    labels = {"budget": label, "source": "p-sigmoid-default"}
    before = value("vtr_requests_total", **labels)
    observe_answer(told(budget))
    assert value("vtr_requests_total", **labels) == before + 1


def test_inline_schedules_share_one_label() -> None:
    labels = {"budget": "0.375", "source": "inline"}
    before = value("vtr_requests_total", **labels)
    for budget in (0.3, 0.31):
        observe_answer(told(budget, "inline"))
    assert value("vtr_requests_total", **labels) == before + 2


def test_a_refusal_is_counted_by_its_code() -> None:
    before = value("vtr_refused_requests_total", reason="invalid_budget")
    observe_refusal(InvalidBudget("budget 5 is not a number in (0, 1]"))
    assert value("vtr_refused_requests_total", reason="invalid_budget") == before + 1


def test_no_label_takes_a_client_string() -> None:
    observe_answer(told(0.123456789))
    samples = [sample for family in REGISTRY.collect() for sample in family.samples]
    ours = [sample for sample in samples if sample.name.startswith("vtr_")]
    assert ours
    assert not any("0.1234" in text for sample in ours for text in sample.labels.values())
