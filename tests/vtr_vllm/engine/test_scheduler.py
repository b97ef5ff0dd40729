"""The scheduler's process without a model: who runs when, and that nobody waits for ever.

``S`` is max_num_seqs and ``B`` max_num_batched_tokens, which is also the size of the encoder's cache.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm.config import KVEventsConfig
from vllm.distributed.kv_events import BlockRemoved, BlockStored
from vllm.v1.core.sched.interface import PauseState

from tests.vtr_vllm.engine.simulation import IMAGE, Item, Simulation, make_scheduler
from tests.vtr_vllm.engine.support import BLOCK

S, B = 16, 512
STEP = 128
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


def waiting_range(checkpoint: Path, **more: Any) -> tuple[Simulation, str]:
    """A simulation in which a request's text has run, and its range waits: others hold the cache."""
    sim = Simulation(
        make_scheduler(checkpoint, max_num_batched_tokens=B, max_num_seqs=S, **more), lag=1
    )
    sim.add(60, Item(length=B - 109), 9, max_tokens=40)
    name = sim.add(40, *[PICTURE] * 6, 20, keep=HALF, priority=5)
    sim.step()
    request = sim.scheduler.requests[name]
    assert request.num_computed_tokens == sim.scheduler.reduced[name].first_vision == 40
    return sim, name


def idle(sim: Simulation) -> bool:
    """Whether nothing is left of any request: no block, no image, no plan."""
    scheduler = sim.scheduler
    return (
        scheduler.kv_cache_manager.usage == 0
        and not scheduler.reduced
        and not scheduler.requests
        and not scheduler.encoder_cache_manager.request_cached_ids
    )


def test_nobody_is_admitted_while_a_range_waits(checkpoint: Path) -> None:
    sim, name = waiting_range(checkpoint)
    later = sim.add(9, priority=5)
    sim.step()
    assert name not in sim.answered
    assert later not in sim.admitted
    sim.step()
    assert sim.answered[name] == sim.admitted[later] == sim.steps
    sim.run(50)
    assert idle(sim)


def test_a_range_that_waits_keeps_no_more_urgent_request_out(checkpoint: Path) -> None:
    sim, name = waiting_range(checkpoint, scheduling_policy="priority")
    urgent, later = sim.add(9, priority=1), sim.add(9, priority=5)
    sim.step()
    assert name not in sim.answered
    assert sim.admitted[urgent] == sim.steps
    assert later not in sim.admitted
    sim.step()
    assert sim.answered[name] == sim.admitted[later] == sim.steps
    sim.run(50)
    assert later in sim.answered
    assert idle(sim)


@pytest.mark.parametrize("priority", [0, 2], ids=["more-urgent", "of-one-prompt"])
def test_who_is_preempted_had_nothing_in_the_step(priority: int, checkpoint: Path) -> None:
    """A decode finds no block in the step of a chunk with an image, whose prompt began first."""
    sim = Simulation(
        make_scheduler(
            checkpoint,
            8 * 18,  # of 18 blocks a band, one is short
            scheduling_policy="priority",
            max_num_batched_tokens=8 * BLOCK,
            max_num_seqs=S,
            long_prefill_token_threshold=4 * BLOCK,
        )
    )
    first = sim.add(12 * BLOCK + 16, PICTURE, 40, priority=2)  # in chunks of 8, 4, 4 blocks
    sim.step()
    other = sim.add(BLOCK, priority=priority)
    if priority == 2:  # answers to one prompt arrive at one time
        sim.scheduler.requests[other].arrival_time = sim.scheduler.requests[first].arrival_time
    sim.step()
    sim.step()
    assert sim.preempted == [other if priority == 2 else first]
    sim.run(60)
    assert idle(sim)


@pytest.mark.parametrize("state", ["paused", "waiting"])
def test_what_is_paused_from_outside_stays_paused(state: str, checkpoint: Path) -> None:
    sim, name = waiting_range(checkpoint)
    later = sim.add(9)
    if state == "paused":
        sim.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    pause = sim.scheduler.pause_state
    for _ in range(4):
        sim.step()
        assert sim.scheduler.pause_state == pause
    assert name in sim.answered
    assert (later in sim.admitted) == (state == "waiting")


def test_a_range_that_is_aborted_while_it_waits_leaves_nothing(checkpoint: Path) -> None:
    sim, name = waiting_range(checkpoint)
    sim.step()
    later = sim.add(9)
    sim.abort(name)
    sim.step()
    assert sim.admitted[later] == sim.steps
    sim.run(50)
    assert idle(sim)


def test_a_range_that_waits_for_one_image_does_not_hold_another(checkpoint: Path) -> None:
    """Two requests, each with one cached image and one to encode, in a cache that fits one of them."""
    sim = Simulation(make_scheduler(checkpoint, max_num_batched_tokens=2048, max_model_len=2048))
    sim.add(Item("a", length=900), Item("c", length=900), 9)
    sim.run(20)
    requests = [
        sim.scheduler.requests[
            sim.add(10, Item(cached, length=900), Item(new, length=900), 20, keep=HALF)
        ]
        for cached, new in (("a", "b"), ("c", "d"))
    ]
    schedule = sim.scheduler._try_schedule_encoder_inputs
    for request in requests:  # another request took this step's encoder budget
        assert schedule(request, 10, 1820, 100)[1] == 0
    assert schedule(requests[0], 10, 1820, 2048)[1] == 1820


def test_an_item_in_the_text_before_the_range_is_encoded_though_the_range_waits(
    checkpoint: Path,
) -> None:
    """Of another modality, that is: only images and videos begin a range."""
    sim = Simulation(make_scheduler(checkpoint, max_num_batched_tokens=B, max_num_seqs=S))
    sim.add(60, Item(length=B - 109), 9, max_tokens=40)
    sim.step()
    before = Item(modality="prompt_embeds", length=20)
    name = sim.add(10, before, 10, *[PICTURE] * 6, 20, keep=HALF)
    assert sim.scheduler.reduced[name].first_vision == 40
    output = sim.step()
    assert output.num_scheduled_tokens[name] == 40, "the cache has no room for the images"
    assert output.scheduled_encoder_inputs[name] == [0]
    sim.run(60)
    assert name in sim.answered
    assert idle(sim)


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"num_blocks": 8 * 30},
    {"num_blocks": 8 * 36, "scheduling_policy": "priority"},
    {"max_num_seqs": 2},
    {"long_prefill_token_threshold": 300},
    {"disable_chunked_mm_input": True, "num_blocks": 8 * 40},
    {"enable_prefix_caching": False, "num_blocks": 8 * 30},
    {"max_num_active_seqs": 5},
]


@pytest.mark.parametrize("lag", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: "-".join(a) or "plain")
def test_any_mix_of_requests_ends_and_leaves_nothing(
    arguments: dict[str, Any], lag: int, checkpoint: Path
) -> None:
    """Random requests and aborts: every step can be followed, and every request comes to its end."""
    defaults = {"max_num_batched_tokens": B, "max_num_seqs": S}
    sim = Simulation(make_scheduler(checkpoint, **(defaults | arguments)), lag)
    limit = arguments.get("long_prefill_token_threshold", B - S + 1)
    rng = np.random.default_rng(lag)
    names = [add_any(sim, rng, limit) for _ in range(8)]
    for _ in range(150):
        for _ in range(rng.poisson(0.4)):
            names.append(add_any(sim, rng, limit))
        if rng.random() < 0.05:
            sim.abort(names[rng.integers(len(names))])
        sim.step()
    sim.run(1500)
    assert idle(sim)
    if arguments.get("num_blocks", 4096) < 8 * 40:
        assert sim.preempted


def add_any(sim: Simulation, rng: np.random.Generator, limit: int) -> str:
    """A request of any kind whose range, if it is reduced, a step can hold."""
    shared = ("", "", "x", "y")
    before, between, after = (int(rng.integers(0, most)) for most in (200, 40, 60))
    items = [
        Item(shared[rng.integers(4)], lead=int(rng.integers(0, 3)))
        for _ in range(rng.integers(0, (limit - 110) // (IMAGE + 2) + 1))
    ]
    parts: list[int | Item] = [before or 1]
    if rng.random() < 0.2:
        parts.append(Item(modality="prompt_embeds", length=int(rng.integers(1, 40))))
    for index, item in enumerate(items):
        parts += [item] if index else [item, between or 1]
    return sim.add(
        *parts,
        after or 1,
        keep=HALF if rng.random() < 0.6 else None,
        max_tokens=int(rng.integers(1, 40)),
        priority=int(rng.integers(0, 3)),
    )


LOCAL = {"keep": HALF, "rule": "diverse"}


def test_a_finished_local_request_is_gone_at_once(checkpoint: Path) -> None:
    """It holds images: it must not wait for the garbage collector."""
    sim = Simulation(make_scheduler(checkpoint))
    name = sim.add(20, PICTURE, 20, **LOCAL)
    assert sim.scheduler.reduced[name].is_local
    seen = weakref.ref(sim.scheduler.requests[name])
    gc.collect()
    gc.disable()
    try:
        sim.run(50)
        assert seen() is None
    finally:
        gc.enable()


def test_reduced_kv_is_announced_to_nobody(checkpoint: Path) -> None:
    """Not even where a client asks to be told what was found in the cache."""
    sim = Simulation(
        make_scheduler(
            checkpoint,
            num_blocks=8 * 36,
            kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="null"),
        )
    )
    told: list[BlockStored] = []
    gone: list[bytes | int] = []
    publish = sim.scheduler.kv_event_publisher.publish
    sim.scheduler.kv_event_publisher.publish = lambda batch: (
        told.extend(event for event in batch.events if isinstance(event, BlockStored)),
        gone.extend(
            name for e in batch.events if isinstance(e, BlockRemoved) for name in e.block_hashes
        ),
        publish(batch),
    )
    for _ in range(2):
        sim._rng = np.random.default_rng(1)  # the same words
        name = sim.add(2 * BLOCK + 3, Item("the same"), 9, **LOCAL)
        request = sim.scheduler.requests[name]
        request.kv_cache_report_mode = "full"
        sim.run(50)
    assert told
    for event in told:
        assert event.token_ids == request.prompt_token_ids[: len(event.token_ids)]
        assert len(event.token_ids) <= 2 * BLOCK
    for _ in range(40):
        sim.add(6 * BLOCK, Item(), 9, **LOCAL)
        sim.run(50)
    assert gone, "the first was evicted"
    assert set(gone) <= {name for event in told for name in event.block_hashes}


def test_what_a_local_request_leaves_in_the_cache_is_counted_in_positions(checkpoint: Path) -> None:
    sim = Simulation(make_scheduler(checkpoint))
    name = sim.add(BLOCK, PICTURE, 2 * BLOCK, max_tokens=4, **LOCAL)
    request = sim.scheduler.requests[name]
    sim.step()
    left = sim.scheduler.kv_cache_manager.estimate_cached_tokens(request)
    assert request.num_prompt_tokens - BLOCK < left <= request.num_prompt_tokens


def test_an_item_that_is_read_position_by_position_stays(checkpoint: Path) -> None:
    """Embeddings that a client sends in the text's place, longer than a step, before an image."""
    sim = Simulation(
        make_scheduler(
            checkpoint,
            max_num_batched_tokens=B,
            max_num_seqs=S,
            long_prefill_token_threshold=STEP,
        )
    )
    embeds = Item(modality="prompt_embeds", length=2 * STEP + 20)
    sim.add(4, max_tokens=60)  # long prompts run in chunks where they are not alone
    sim.step()
    name = sim.add(4, embeds, PICTURE, 8, keep=HALF)
    for computed in (STEP, 2 * STEP):
        sim.step()
        request = sim.scheduler.requests[name]
        assert request.num_computed_tokens == computed
        assert 0 in sim.scheduler.encoder_cache_manager.get_cached_input_ids(request)
    sim.run(100)
    assert idle(sim)
