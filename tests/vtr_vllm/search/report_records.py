"""What a search and a held-out comparison write, in small: the input of a report."""

import random
from typing import Any

from vtr_vllm.search.report_data import Frontier

LAYERS = 12
FINGERPRINT = "12L-384h-1024i-6q-6kv-64d"
BUDGETS = (0.75, 0.5, 0.375, 0.25, 0.125)
FOUND = ("g-search", "g-search-blind", "p-sigmoid", "p-sigmoid-rules", "descent")
OURS = (*FOUND, "searched")
BASELINES = ("random", "downsample", "fastv", "pdrop", "vtw", "uniform")


def as_read(frontier: dict[str, Any]) -> dict[str, Any]:
    """A held-out comparison as ``read_frontier`` gives it."""
    return Frontier.model_validate(frontier).model_dump()


def search_record(seed: int = 0) -> dict[str, Any]:
    """What ``search.json`` holds after both searches."""
    draw = random.Random(seed)
    return {
        "meta": {
            "model": "demo",
            "fingerprint": FINGERPRINT,
            "n_vision": 144,
            "finished": True,
            "data": {"path": "calibration.jsonl", "sha256": "ab" * 32, "n": 300, "answered": True},
            "seed": 7,
            "objective": "accuracy",
            "tolerance": 0.01,
            "versions": {"vtr": "0.3.0", "vllm": "0.32.0"},
            "command": "vtr search run --model demo",
            "date": "2025-11-02",
            "unreduced": {"value": 0.99, "accuracy": 0.99, "low": 0.971, "high": 0.997},
        },
        "g_search": [{"name": "g-search", "steps": [step(layer) for layer in range(2, LAYERS)]}],
        "schedules": [schedule(method, budget) for method in FOUND for budget in BUDGETS],
        "trials": [
            {
                "budget": budget,
                "search": search,
                "order": order,
                "parameters": {"k": draw.uniform(0, 2), "alpha": draw.random()},
                "value": 0.4 + 0.5 * budget + 0.1 * draw.random(),
                "accuracy": 0.9,
                "taken": order == 17,
            }
            for search in ("p-sigmoid", "p-sigmoid-rules")
            for budget in BUDGETS
            for order in range(40)
        ],
        "cost": [
            stage("g-search", 21_000, 84_000),
            stage("p-sigmoid", 30_500, 60_000),
            stage("p-sigmoid-rules", 28_123, 60_000),
            stage("descent", 4_000, 18_000),
        ],
    }


def frontier_record(seed: int = 0) -> dict[str, Any]:
    """What ``frontier.json`` holds; FastV, PyramidDrop and random do not reach 0.125."""
    draw = random.Random(seed)
    places = [(method, budget) for method in (*BASELINES, *OURS) for budget in BUDGETS]
    return {
        "meta": {
            "fingerprint": FINGERPRINT,
            "level": 0.95,
            "splits": {
                name: {"path": f"{name}.jsonl", "sha256": "cd" * 32, "n": 1000, "answered": True}
                for name in ("test", "shifted")
            },
            "command": "vtr search compare",
            "date": "2025-11-03",
        },
        "rows": [row("full", 1.0, draw), *(row(*place, draw) for place in places)],
    }


def step(layer: int) -> dict[str, Any]:
    """One cut of G-Search."""
    keep = 1 - 0.08 * (layer - 1)
    return {
        "layer": layer,
        "count": round(144 * keep),
        "keep": keep,
        "accuracy": 0.991,
        "value": 0.98,
        "mean_keep": (1 + keep) / 2,
        "evaluations": 7,
    }


def schedule(method: str, budget: float) -> dict[str, Any]:
    """One found schedule: all tokens for a while, then a geometric fall to the budget's mean."""
    steep = 0.5 + 0.05 * OURS.index(method)
    keep = [1.0, 1.0, *(budget * steep ** (layer // 3) for layer in range(LAYERS - 2))]
    return {
        "name": f"{method}-{budget:g}",
        "method": method,
        "budget": budget,
        "mean_keep": sum(keep) / LAYERS,
        "keep": keep,
        "rules": ["last", "previous"],
        "accuracy": 0.9 + 0.05 * budget,
        "low": 0.85,
        "high": 0.97,
        "value": 0.91,
    }


def stage(name: str, requests: int, naive: int) -> dict[str, Any]:
    """What one stage cost."""
    return {
        "stage": name,
        "evaluations": 70,
        "reused": 12,
        "stopped": 30,
        "requests": requests,
        "naive_requests": naive,
        "seconds": 210.0,
        "occupancy": 0.93,
    }


def row(method: str, budget: float, draw: random.Random) -> dict[str, Any]:
    """One method at one budget on both splits."""
    reachable = budget > 0.125 or method not in ("random", "fastv", "pdrop")
    gain = 0.99 if method == "full" else (0.75 if method in OURS else 0.5)
    score = min(0.99, gain + 0.3 * budget + 0.05 * draw.random())
    return {
        "name": f"{method}-{budget:g}",
        "method": method,
        "budget": budget,
        "mean_keep": budget if reachable else None,
        "flops_fraction": 0.03 + 0.97 * budget if reachable else None,
        "keep": None,
        "rules": [],
        "reachable": reachable,
        "why_not": None if reachable else "the first cut is before layer 2",
        "splits": {"test": scored(score), "shifted": scored(score - 0.1)} if reachable else {},
    }


def scored(score: float) -> dict[str, Any]:
    """A score with what belongs to it."""
    return {
        "n": 1000,
        "score": score,
        "low": score - 0.02,
        "high": min(1.0, score + 0.02),
        "logp": -0.05,
        "minus_full": {"difference": score - 0.99, "low": score - 1.0, "high": score - 0.98},
        "kinds": {"color": {"n": 200, "score": score}, "where": {"n": 800, "score": score}},
    }
