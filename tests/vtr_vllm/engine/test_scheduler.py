"""The scheduler's process without a model: who runs when, and that nobody waits for ever.

``S`` is max_num_seqs and ``B`` max_num_batched_tokens, which is also the size of the encoder's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vtr_vllm.engine.simulation import Item, Simulation, make_scheduler

S, B = 16, 512
HALF = (1.0,) * 4 + (0.5,) * 4
PICTURE = Item()


def feed_pictures(sim: Simulation) -> None:
    sim.add(20, PICTURE, 44, max_tokens=3)


def feed_albums(sim: Simulation) -> None:
    sim.add(150, PICTURE, 150, PICTURE, PICTURE, 150, max_tokens=5)


def feed_the_same_picture(sim: Simulation) -> None:
    """Each is one of three pictures, over and over, held until its last occurrence has run."""
    picture = Item(f"shared-{sim.steps % 3}")
    sim.add(10, picture, 200, PICTURE, 200, picture, 40, max_tokens=3)


def feed_mixed(sim: Simulation) -> None:
    feeds = (feed_pictures, feed_albums, feed_the_same_picture)
    feeds[sim.steps % 3](sim)
    sim.add(300, max_tokens=20)


LOADS: list[Any] = [
    pytest.param(feed_pictures, {}, id="pictures"),
    pytest.param(feed_albums, {}, id="albums"),
    pytest.param(feed_albums, {"long_prefill_token_threshold": 450}, id="albums-in-chunks"),
    pytest.param(feed_the_same_picture, {}, id="the-same-picture"),
    pytest.param(feed_mixed, {}, id="mixed"),
]


def keep_full(sim: Simulation, feed: Callable[[Simulation], None], waiting: int = 20) -> None:
    while len(sim.scheduler.waiting) < waiting:
        feed(sim)


@pytest.mark.parametrize("lag", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize("before", [0, 40, 400], ids=lambda n: f"{n}-tokens-before")
@pytest.mark.parametrize(("feed", "more"), LOADS)
def test_a_range_runs_soon_whatever_comes_after_it(
    feed: Callable[[Simulation], None],
    before: int,
    lag: int,
    more: dict[str, Any],
    checkpoint: Path,
) -> None:
    """Full load for ever. Once the range is next, nobody begins before it, and it runs ``lag`` + 1
    steps after the last of the prompts that run already, at the latest."""
    sim = Simulation(
        make_scheduler(checkpoint, max_num_batched_tokens=B, max_num_seqs=S, **more), lag
    )
    for _ in range(20):
        keep_full(sim, feed)
        sim.step()
    name = sim.add(*[before] * (before > 0), *[PICTURE] * 6, 30, keep=HALF)
    turn = turn_of(sim, name, feed)
    ahead = {r.request_id for r in sim.scheduler.running if r.request_id not in sim.answered}
    ahead -= {name}
    begun = set(sim.admitted)
    while name not in sim.answered:
        assert sim.steps < turn + 60, f"{name} starves"
        keep_full(sim, feed)
        sim.step()
        if name not in sim.answered:
            assert set(sim.admitted) <= begun | {name}, "somebody overtook"
    last = max((sim.answered.get(other, sim.steps) for other in ahead), default=turn)
    assert sim.answered[name] <= max(last, turn) + lag + 1


def turn_of(sim: Simulation, name: str, feed: Callable[[Simulation], None]) -> int:
    """Run until the range is next: the text before it is done, or the request heads the queue."""
    request = sim.scheduler.requests[name]
    first_vision = sim.scheduler.reduced[name].first_vision
    while name not in sim.answered:
        assert sim.steps < 300, f"{name} never gets its turn"
        if request.num_computed_tokens == first_vision > 0:
            break
        keep_full(sim, feed)
        if first_vision == 0 and sim.scheduler.waiting.peek_request() is request:
            break
        sim.step()
    return sim.steps
