"""Blocks held and saved, against a count over what every request holds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.vtr_vllm.engine.conftest import Engines
from tests.vtr_vllm.engine.scheduler.test_scheduler import HALF, SMALL_CACHE, reduced, scheduler
from tests.vtr_vllm.engine.support import BLOCK, Case, picture, words
from vtr_vllm.engine.common.kv_report import KVReport
from vtr_vllm.engine.frontend.engine_queries import kv_report

pytestmark = pytest.mark.engine


def test_reports_add_up() -> None:
    assert KVReport(10, 7, 3, 1) + KVReport(20, 5, 15, 2) == KVReport(30, 12, 18, 3)


def ask(llm: Any) -> KVReport:
    return asyncio.run(kv_report(llm.llm_engine))


def blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def test_saved_is_what_full_budget_would_hold_more(engines: Engines, checkpoint: Path) -> None:
    """At every step; the same requests at full budget hold as many blocks as held and saved."""
    llm = engines.get(model=checkpoint)
    llm.reset_prefix_cache()
    cases = [
        reduced(f"{words(1, 5)}<image>{words(2, 9)}", 1),
        reduced(f"{words(3, 70)}<image>{words(4, 3)}", 2, HALF),
        Case(f"{words(5, 40)}<image>{words(6, 9)}", (picture(3),)),
        Case(words(7, 90)),
    ]
    idle = ask(llm)
    assert idle == KVReport(idle.total, idle.total, 0, 0)
    for i, case in enumerate(cases):
        llm.llm_engine.add_request(str(i), case.prompt, case.params(20))
    bands = len(scheduler(llm).kv_cache_manager.coordinator.single_type_managers)
    most = 0
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        found = ask(llm)
        computed = [r.num_computed_tokens for r in scheduler(llm).running]
        assert found.held + found.saved == bands * sum(map(blocks, computed))
        assert found.held + found.free == found.total
        most = max(most, found.saved)
    assert most > 0
    assert ask(llm) == idle


def test_full_budget_saves_nothing(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint)
    llm.reset_prefix_cache()
    case = Case(f"{words(5, 40)}<image>{words(6, 9)}", (picture(3),))
    llm.llm_engine.add_request("0", case.prompt, case.params(5))
    while llm.llm_engine.has_unfinished_requests():
        assert ask(llm).saved == 0
        llm.llm_engine.step()


def test_saved_never_falls_below_zero_when_requests_are_preempted(
    engines: Engines, checkpoint: Path
) -> None:
    llm = engines.get(model=checkpoint, num_gpu_blocks_override=60, **SMALL_CACHE)
    case = reduced(f"{words(1, 30)}<image>{words(2, 9)}", 1, HALF)
    for i in range(12):
        llm.llm_engine.add_request(str(i), case.prompt, case.params(60))
    seen = set()
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        found = ask(llm)
        assert found.saved >= 0
        assert 0 <= found.held <= found.total == 59
        waiting = [r for r in scheduler(llm).waiting if r.num_preemptions]
        seen.add(bool(waiting))
    assert seen == {True, False}
    assert ask(llm) == KVReport(59, 59, 0, 0)
