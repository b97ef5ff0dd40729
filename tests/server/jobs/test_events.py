"""The stream of a job's events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi.sse import ServerSentEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtr_server.jobs import events
from vtr_server.jobs.events import Watchers, check_offset, follow
from vtr_server.jobs.protocol import Job, JobSpec
from vtr_vllm.errors import JobsBusy, RequestError

SPEC = JobSpec(kind="all", model="demo", data="items.jsonl", budgets=[0.5])
JOB = Job(id="0" * 16, created=0, spec=SPEC)
DONE = JOB.model_copy(update={"state": "done"})


def gather(looks: Iterator[Job], path: Path, offset: int = 0) -> list[ServerSentEvent]:
    async def all_of() -> list[ServerSentEvent]:
        return [event async for event in follow(lambda: next(looks), path, offset)]

    return asyncio.run(all_of())


def line(**facts: object) -> str:
    return json.dumps({"time": 1.0, "kind": "step"} | facts) + "\n"


def test_what_is_written_before_a_state_is_seen_comes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def looks() -> Iterator[Job]:
        yield JOB
        path.write_text(line(n=1))
        yield JOB.model_copy(update={"state": "running"})
        with path.open("a") as file:
            file.write(line(n=2) + line(kind="done"))
        yield DONE

    told = gather(looks(), path)
    assert [event.event for event in told] == ["state", "state", "step", "step", "done", "state"]
    assert json.loads(told[-1].raw_data or "")["state"] == "done"
    assert [event.id is None for event in told] == [True, True, False, False, False, True]


@pytest.mark.parametrize(
    "torn", ['{"time": 1, "ki\n', "\n", "[]\n", "3\n", '{"time": 1}\n', '{"kind": 3}\n', '{"ki']
)
def test_half_a_line_tells_nothing(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line(n=1) + torn)
    assert [event.event for event in gather(iter([DONE]), path)] == ["step", "state"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(texts=st.lists(st.text(), max_size=6))
def test_from_every_id_on_the_rest_follows(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(line(text=text) for text in texts))
    everything = gather(iter([DONE]), path)
    assert [json.loads(e.raw_data or "")["text"] for e in everything[:-1]] == texts
    for index, event in enumerate(everything[:-1], start=1):
        offset = int(event.id or "")
        check_offset(path, offset)
        assert gather(iter([DONE]), path, offset) == everything[index:]


def test_an_id_that_no_event_has(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    check_offset(path, 0)
    with pytest.raises(RequestError, match="Last-Event-ID 5 is no event"):
        check_offset(path, 5)
    path.write_text(line())
    size = path.stat().st_size
    check_offset(path, size)
    for offset in (1, size - 1, size + 1):
        with pytest.raises(RequestError, match=f"Last-Event-ID {offset}"):
            check_offset(path, offset)


def test_a_caller_and_all_callers_have_so_many_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_OF_A_CALLER", 2)
    monkeypatch.setattr(events, "MOST_WATCHING", 3)
    watchers = Watchers()
    with ExitStack() as held:
        held.enter_context(watchers.place("one"))
        with watchers.place("one"), pytest.raises(JobsBusy, match="2 event streams of yours"):
            held.enter_context(watchers.place("one"))
        held.enter_context(watchers.place("one"))
        held.enter_context(watchers.place("other"))
        with pytest.raises(JobsBusy, match="3 event streams"):
            held.enter_context(watchers.place("third"))
    with watchers.place("third"):
        pass
