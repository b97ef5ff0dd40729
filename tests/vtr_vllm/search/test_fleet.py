"""The queue and the servers that fail, against servers that fail on purpose."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.search.stub_server import GEOMETRY, Reply, Stub, refusal, stub_server
from vtr_vllm.errors import ConfigurationError, EvaluationFailed
from vtr_vllm.search import fleet
from vtr_vllm.search.fleet import TRIES, Fleet, FleetRequest, Replies, _Run, _Server
from vtr_vllm.search.servers import Served, Trouble


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(fleet, "LONGEST_WAIT", 0.05)


@pytest.fixture
def start() -> Any:
    """Starts stub servers that end with the test."""
    with ExitStack() as stack:
        yield lambda chat: stack.enter_context(stub_server(chat))


def echo(body: Any) -> Reply:
    """The right answer to request ``i``."""
    return Reply(body={"is": body["i"]})


def ask(
    stubs: list[Stub], count: int, in_flight: int = 4, patience: float = 60.0
) -> tuple[Replies[int], Fleet]:
    fleet = Fleet([stub.url for stub in stubs], in_flight, patience, None)
    return send(fleet, count), fleet


def send(fleet: Fleet, count: int) -> Replies[int]:
    return fleet.run([request(f"request {i}", i) for i in range(count)])


def request(name: str, number: int) -> FleetRequest[int]:
    def read(response: httpx.Response) -> int:
        if response.status_code != 200:
            raise EvaluationFailed(f"{name}: {response.text}")
        return int(response.json()["is"])

    return FleetRequest(name, json.dumps({"i": number}).encode, read)


def failing(times: Callable[[int], int], how: Reply) -> Callable[[Any], Reply]:
    """Answers request ``i`` only after ``times(i)`` failures."""
    seen: Counter[int] = Counter()
    lock = threading.Lock()

    def chat(body: Any) -> Reply:
        with lock:
            seen[body["i"]] += 1
            return how if seen[body["i"]] <= times(body["i"]) else echo(body)

    return chat


def test_answers_come_in_the_order_asked_and_both_servers_work(start: Any) -> None:
    together = threading.Barrier(4)  # passes only while both servers have two in flight

    def chat(body: Any) -> Reply:
        together.wait(30)
        return echo(body)

    stubs = [start(chat), start(chat)]
    replies, used = ask(stubs, 40, in_flight=2)
    assert replies.answers == tuple(range(40))
    assert used.retries == 0
    assert stubs[0].answered == stubs[1].answered == 20
    assert 0 < replies.busy <= replies.room


def test_servers_are_reached_whatever_proxy_the_environment_names(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    replies, _ = ask([start(echo)], 2)
    assert replies.answers == (0, 1)


def test_nothing_asked_is_nothing_answered(start: Any) -> None:
    replies, _ = ask([start(echo)], 0)
    assert replies.answers == ()


@pytest.mark.parametrize("how", [refusal(500, "broken"), refusal(503, "not yet"), Reply(0)])
def test_what_failed_is_asked_again(start: Any, how: Reply) -> None:
    stub = start(failing(lambda i: i % 3, how))
    replies, used = ask([stub], 9)
    assert replies.answers == tuple(range(9))
    assert used.retries == 9


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.integers(0, TRIES - 1), min_size=1, max_size=6),
    st.sampled_from([refusal(500, "broken"), refusal(429, "full"), Reply(0)]),
)
def test_every_retry_is_counted_and_no_answer_lost(
    start: Any, times: list[int], how: Reply
) -> None:
    # one failure at a time: a closed connection must not take a neighbour's with it
    replies, used = ask([start(failing(lambda i: times[i], how))], len(times), in_flight=1)
    assert replies.answers == tuple(range(len(times)))
    assert used.retries == sum(times)


def test_a_request_that_fails_everywhere_ends_the_run(start: Any) -> None:
    chat = failing(lambda i: TRIES if i == 3 else 0, refusal(500, "this one breaks me"))
    with pytest.raises(EvaluationFailed, match="request 3 failed 5 times.*this one breaks me"):
        ask([start(chat)], 6)


def test_a_full_server_may_say_so_more_often(start: Any) -> None:
    how = refusal(429, "come later", Retry_After="0")
    replies, used = ask([start(failing(lambda i: 2 * TRIES, how))], 2)
    assert replies.answers == (0, 1)
    assert used.retries == 4 * TRIES


def test_a_refusal_ends_the_run_at_once(start: Any) -> None:
    stub = start(lambda body: refusal(400, "no such rule") if body["i"] == 2 else echo(body))
    with pytest.raises(EvaluationFailed, match="request 2.*no such rule"):
        ask([stub], 500, in_flight=1)
    assert stub.answered < 10


def test_a_dead_server_costs_retries_only(start: Any) -> None:
    def die(body: Any) -> Reply:
        mortal.alive = False
        return echo(body)

    mortal, other = start(die), start(echo)
    replies, used = ask([mortal, other], 60)
    assert replies.answers == tuple(range(60))
    assert used.retries >= 1
    # it is still down when the next run begins, so nothing is sent to it
    before = mortal.answered, used.retries
    assert send(used, 20).answers == tuple(range(20))
    assert (mortal.answered, used.retries) == before


def test_a_server_that_comes_back_is_used_again(start: Any) -> None:
    died, used_again = threading.Event(), threading.Event()

    def die_once(body: Any) -> Reply:
        if died.is_set():
            used_again.set()
            return echo(body)
        mortal.alive = False
        died.set()
        return Reply(0)

    def outlive(body: Any) -> Reply:
        died.wait(30)
        mortal.alive = True
        if body["i"] == 39:  # behind it in the queue is what the other gave back
            used_again.wait(30)
        return echo(body)

    mortal, other = start(die_once), start(outlive)
    replies, used = ask([mortal, other], 40, in_flight=1)
    assert replies.answers == tuple(range(40))
    assert used_again.is_set()
    assert used.retries == 1


def test_a_fleet_that_is_down_is_given_up(start: Any) -> None:
    def die(body: Any) -> Reply:
        for stub in stubs:
            stub.alive = False
        return echo(body)

    stubs = [start(die), start(die)]
    with pytest.raises(EvaluationFailed, match="no server has answered") as caught:
        ask(stubs, 30, patience=0.5)
    assert all(stub.url in str(caught.value) for stub in stubs)
    assert "Server disconnected" in str(caught.value)


class Clock:
    """Monotonic seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """With the waits of a real run."""
    clock = Clock()
    monkeypatch.setattr(fleet, "monotonic", clock)
    monkeypatch.setattr(fleet, "FIRST_WAIT", 0.5)
    monkeypatch.setattr(fleet, "LONGEST_WAIT", 30.0)
    return clock


PATIENCE = 60.0


def run_of(answer: Callable[[httpx.Request], httpx.Response]) -> tuple[_Run, list[_Server]]:
    """Two servers that are up, and what a run does to them."""
    servers = [_Server("http://one", None), _Server("http://two", None)]
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    served = Served("stub", GEOMETRY, None)
    return _Run(client, servers, served, 1, PATIENCE), servers


def test_a_server_that_fails_is_asked_less_and_less_often(clock: Clock) -> None:
    run, (server, other) = run_of(lambda _: httpx.Response(200))
    waits = []
    for _ in range(9):
        run._fail(server, Trouble("broken"))
        waits.append(server.wait)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert server.down.is_set()
    assert not server.up.is_set()
    assert other.up.is_set()


def test_a_server_may_say_when_to_come_again(clock: Clock) -> None:
    """Not later than a run has patience for."""
    run, (server, _) = run_of(lambda _: httpx.Response(200))
    run._fail(server, Trouble("full", wait=7.0, full=True))
    assert server.wait == 7.0
    run._fail(server, Trouble("full", wait=3600.0, full=True))
    assert server.wait == PATIENCE


def test_an_answer_ends_the_count_of_failures(clock: Clock) -> None:
    statuses = iter([503, 503, 200, 503])
    run, (server, _) = run_of(lambda _: httpx.Response(next(statuses)))
    waits = []

    async def ask_four_times() -> None:
        for index in range(4):
            server.up.set()
            await run._ask(server, index, request(f"request {index}", index))
            waits.append(server.wait)

    asyncio.run(ask_four_times())
    assert waits == [0.5, 1.0, 1.0, 0.5]


def test_a_fleet_is_given_up_only_once_all_have_failed_for_long(clock: Clock) -> None:
    run, (long_down, other) = run_of(lambda _: httpx.Response(200))
    run._fail(long_down, Trouble("gone"))
    clock.now = 10 * PATIENCE
    run._fail(long_down, Trouble("gone"))
    run._fail(other, Trouble("broken"))
    clock.now += PATIENCE
    run._fail(other, Trouble("broken"))
    clock.now += 0.1
    with pytest.raises(EvaluationFailed, match="no server has answered for 60 s") as caught:
        run._fail(other, Trouble("broken"))
    assert "http://one: gone" in str(caught.value)
    assert "http://two: broken" in str(caught.value)


def test_a_server_that_hangs_is_left_alone(start: Any) -> None:
    end = threading.Event()

    def hang(body: Any) -> Reply:
        end.wait(60)
        return Reply(0)

    try:
        replies, used = ask([start(hang), start(echo)], 10, in_flight=2, patience=1.0)
    finally:
        end.set()
    assert replies.answers == tuple(range(10))
    assert used.retries >= 2


def test_a_server_that_comes_back_as_another_ends_the_run(start: Any) -> None:
    def change(body: Any) -> Reply:
        stub.model = "another"
        return refusal(503, "restarting")

    stub = start(change)
    with pytest.raises(ConfigurationError, match="came back with another"):
        ask([stub], 1)


def test_servers_must_agree(start: Any) -> None:
    stubs = [start(echo), start(echo)]
    stubs[1].model = "another"
    with pytest.raises(ConfigurationError, match="differ") as caught:
        ask(stubs, 1)
    assert all(f"{stub.url}: {stub.model}" in str(caught.value) for stub in stubs)


def test_a_server_without_schedules_is_refused(start: Any) -> None:
    stub = start(echo)
    stub.missing = ("/v1/schedules",)
    with pytest.raises(ConfigurationError, match="/v1/schedules: HTTP 404 Not Found"):
        ask([stub], 1)


def test_a_server_that_is_not_there_is_named(start: Any) -> None:
    stub = start(echo)
    stub.alive = False
    with pytest.raises(EvaluationFailed, match=stub.url):
        ask([stub, start(echo)], 1)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "", "http://", "http://a:b"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="give http://HOST:PORT"):
        Fleet([url], 1, 1.0, None)


def test_a_fleet_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one server"):
        Fleet([], 1, 1.0, None)


def test_the_api_key_is_sent(start: Any) -> None:
    stub = start(echo)
    assert send(Fleet([stub.url], 1, 60.0, "secret"), 2).answers == (0, 1)
    assert stub.authorizations == {"Bearer secret"}
