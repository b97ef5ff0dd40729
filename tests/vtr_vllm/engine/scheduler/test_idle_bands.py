"""Bands that are not asked in most steps do in every step what they do when asked in each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator

from tests.vtr_vllm.engine.conftest import LAYERS
from tests.vtr_vllm.engine.simulation import Item, Simulation, make_scheduler
from vtr_vllm.engine.scheduler import scheduler as scheduler_module

GUIDED = (1.0,) * 2 + (0.5,) * 3 + (0.25,) * (LAYERS - 5)
LOCAL = (0.5,) * 4 + (0.25,) * (LAYERS - 4)
KINDS: list[dict[str, Any]] = [
    {},
    {"keep": GUIDED},
    {"keep": LOCAL, "rule": "saliency"},
]


def add_any(sim: Simulation, rng: np.random.Generator) -> None:
    """A request of any kind; images come back, so that the cache has something to say."""
    parts: list[int | Item] = [int(rng.integers(1, 60))]
    for _ in range(rng.integers(1, 3)):
        parts += [Item(("x", "y", "")[rng.integers(3)]), int(rng.integers(1, 40))]
    kind = KINDS[rng.integers(len(KINDS))]
    sim.add(*parts, max_tokens=int(rng.integers(1, 120)), **kind)


def steps(checkpoint: Path, seed: int, lag: int, **arguments: Any) -> tuple[list[Any], Any, int]:
    """(what each step gives each request, what the cache knows in the end, preemptions)."""
    sim = Simulation(make_scheduler(checkpoint, max_num_batched_tokens=400, **arguments), lag)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(160):
        if rng.random() < 0.15:
            add_any(sim, rng)
        output = sim.step()
        cached = output.scheduled_cached_reqs
        found.append(
            (
                output.num_scheduled_tokens,
                [
                    (new.req_id, new.block_ids, new.num_computed_tokens)
                    for new in output.scheduled_new_reqs
                ],
                list(zip(cached.req_ids, cached.new_block_ids, strict=True)),
            )
        )
    names = sim.scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block._cache
    return found, set(names), len(sim.preempted)


@pytest.mark.parametrize("lag", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_blocks": 8 * 36}, {"enable_prefix_caching": False, "num_blocks": 8 * 36}],
    ids=["room", "preemption", "uncached"],
)
def test_every_step_is_that_of_bands_that_are_always_asked(
    checkpoint: Path, lag: int, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        skipped = steps(checkpoint, seed, lag, **arguments)
        with monkeypatch.context() as patch:
            patch.setattr(scheduler_module, "skip_idle_bands", lambda *_: None)
            asked = steps(checkpoint, seed, lag, **arguments)
        assert skipped == asked
        assert bool(asked[2]) == ("num_blocks" in arguments)
        assert bool(asked[1]) == ("enable_prefix_caching" not in arguments)


def test_a_step_without_news_asks_no_band(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 steps a request fills one block: a band is asked where it needs it, and where it is full."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        method = getattr(KVCacheCoordinator, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return method(self, *args, **kwargs)

        monkeypatch.setattr(KVCacheCoordinator, name, call)

    for name in ("get_num_blocks_to_allocate", "allocate_new_blocks", "cache_blocks"):
        counted(name)
    sim = Simulation(make_scheduler(checkpoint))
    sim.add(20, max_tokens=200)
    for _ in range(4):
        sim.step()
    calls.clear()
    for _ in range(128):
        sim.step()
    blocks = 128 // sim.scheduler.kv_cache_manager.block_pool.hash_block_size
    assert calls["allocate_new_blocks"] <= blocks + 1
    assert calls["get_num_blocks_to_allocate"] <= blocks + 1
    assert calls["cache_blocks"] <= 2 * blocks + 1


def test_what_has_gone_leaves_nothing(checkpoint: Path) -> None:
    sim = Simulation(make_scheduler(checkpoint))
    for kind in KINDS:
        sim.add(20, Item(), 5, max_tokens=20, **kind)
    sim.run(60)
    band = sim.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
    assert not band.idle.room
    assert not band.idle.unnamed
