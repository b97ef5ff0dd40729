"""SIGTERM: what is inside is answered, nothing new is taken, and then the engine stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import free_port, wait_until, wait_until_up
from tests.server.conftest import START_SECONDS
from tests.server.gate.apps import Place
from vtr_server.gate.drain import drain_first
from vtr_vllm.errors import EngineNotReady

STREAMS = 4


class Engine:
    """What ``drain_first`` knows of vLLM's engine client."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.stopped: list[tuple[int, float | None]] = []
        self.errored = False

    def shutdown(self, timeout: float | None = None) -> None:
        self.stopped.append((self.place.gate.occupancy.in_flight, timeout))


def stop_while_busy(timeout: float | None, release: bool) -> tuple[Engine, httpx.Response]:
    """Shut the engine down, from a thread as vLLM does, while a request is inside."""
    place = Place()
    engine = Engine(place)

    async def stop() -> httpx.Response:
        drain_first(engine, place.gate)
        loop = asyncio.get_running_loop()
        async with place.client() as client:
            asked = asyncio.create_task(client.post("/v1/slow"))
            while not place.gate.occupancy.in_flight:
                await asyncio.sleep(0.001)
            stopped = loop.run_in_executor(None, lambda: engine.shutdown(timeout=timeout))
            while not (place.gate.draining or engine.stopped):
                await asyncio.sleep(0.001)
            if release or not timeout:
                place.release.set()
            await stopped
            engine.shutdown(timeout=timeout)  # vLLM's second, from the loop itself
            return await asked

    return engine, asyncio.run(stop())


def test_the_engine_stops_after_the_last_answer() -> None:
    engine, answer = stop_while_busy(30, release=True)
    assert answer.status_code == 200
    assert [in_flight for in_flight, _ in engine.stopped] == [0, 0]
    first, second = (left for _, left in engine.stopped)
    assert first is not None
    assert 0 < first <= 30
    assert second == 30, "the second call is passed on as it is"


def test_what_does_not_end_in_time_is_cut_off() -> None:
    engine, answer = stop_while_busy(0.1, release=False)
    assert answer.json()["error"]["code"] == "draining"
    assert engine.stopped[0][0] == 0
    assert engine.place.seen == ["aborted"]


@pytest.mark.parametrize("timeout", [0, None])
def test_without_time_the_engine_stops_at_once(timeout: float | None) -> None:
    engine, _ = stop_while_busy(timeout, release=False)
    assert engine.stopped[0] == (1, timeout)


def test_a_server_whose_engine_has_died_does_not_end_as_if_all_were_well() -> None:
    place = Place()
    engine = Engine(place)

    async def run() -> None:
        drain_first(engine, place.gate)
        engine.errored = True
        with pytest.raises(EngineNotReady, match="has died"):
            engine.shutdown(timeout=30)
        engine.shutdown(timeout=30)

    asyncio.run(run())
    assert len(engine.stopped) == 2


def test_an_engine_that_was_stopped_is_not_taken_for_one_that_died() -> None:
    place = Place()
    engine = Engine(place)

    async def run() -> None:
        drain_first(engine, place.gate)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: engine.shutdown(timeout=30))
        engine.errored = True  # as vLLM's client is from now on
        engine.shutdown(timeout=30)

    asyncio.run(run())
    assert len(engine.stopped) == 2


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str, Path]]:
    """A server that a test may kill: process, address, address of its admin port, log."""
    ports = free_port(), free_port()
    settings = tmp_path / "settings.toml"
    settings.write_text(f"[admin]\nport = {ports[1]}\n")
    log = tmp_path / "server.log"
    flags = ["--port", str(ports[0]), "--settings", str(settings), "--max-num-seqs", "8"]
    command = [sys.executable, "-m", "vtr_vllm.cli", "serve", "demo", *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    main, admin = (f"http://127.0.0.1:{port}" for port in ports)
    try:
        wait_until_up(process, f"{admin}/ready", log, START_SECONDS)
        yield process, main, admin, log
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.mark.engine
@pytest.mark.slow
def test_every_stream_finishes_after_sigterm(
    own_server: tuple[subprocess.Popen[bytes], str, str, Path],
) -> None:
    process, main, admin, log = own_server
    assert httpx.get(f"{main}/health").status_code == 404, "it moved to the admin port"
    assert "vtr_in_flight_requests" in httpx.get(f"{admin}/metrics").text
    begun = threading.Barrier(STREAMS + 1)
    ends: list[list[str]] = [[] for _ in range(STREAMS)]

    def read(lines: list[str]) -> None:
        body = {
            "model": "demo",
            "stream": True,
            "max_tokens": 300,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": "What color is the B?"}],
        }
        url = f"{main}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=120) as answer:
            for line in answer.iter_lines():
                if line and not lines:
                    begun.wait(120)
                if line:
                    lines.append(line)

    readers = [threading.Thread(target=read, args=(lines,)) for lines in ends]
    for reader in readers:
        reader.start()
    begun.wait(120)
    process.send_signal(signal.SIGTERM)
    refused = _until_refused(main)
    assert refused.json()["error"]["code"] == "draining"
    assert int(refused.headers["retry-after"]) > 0
    assert httpx.get(f"{admin}/ready").status_code == 503
    assert httpx.get(f"{admin}/live").status_code == 200
    for reader in readers:
        reader.join(120)
    assert process.wait(120) == 0, log.read_text()[-4000:]
    for lines in ends:
        assert lines[-1] == "data: [DONE]"
        last = json.loads(lines[-2].removeprefix("data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["vtr"]["budget"] == 1.0


def _until_refused(main: str) -> httpx.Response:
    """The first answer that says no; the signal needs a moment to arrive."""

    def ask() -> httpx.Response | None:
        answer = httpx.get(f"{main}/v1/models", timeout=60)
        return answer if answer.status_code == 503 else None

    return wait_until(ask)
