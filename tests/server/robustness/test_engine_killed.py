"""The engine's process is killed: everybody is told, the server ends, a supervisor brings it back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.running import answers, free_port, wait_until
from tests.server.bad_input import CHAT, COMPLETION
from tests.server.conftest import START_SECONDS
from tests.server.robustness.bodies import RESPONSES

LIVENESS_SECONDS = 60
"""For what takes a few seconds on a quiet machine."""

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]


class Supervised:
    """``vtr serve demo``, started again whenever it ends, as systemd does with ``Restart=always``."""

    def __init__(self, log: Path) -> None:
        port = str(free_port())  # one for all of its starts
        self.url = f"http://127.0.0.1:{port}"
        self.statuses: list[int] = []
        self._log = log
        self._command = [sys.executable, "-m", "vtr_vllm.cli", "serve", "demo", "--port", port]
        self._stopping = False
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def _supervise(self) -> None:
        with self._log.open("wb") as out:
            while not self._stopping:
                self.process = subprocess.Popen(
                    self._command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
                self.statuses.append(self.process.wait())

    def stop(self) -> None:
        self._stopping = True
        self.process.send_signal(signal.SIGTERM)
        self._thread.join(120)
        if self._thread.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            self._thread.join()

    def wait_until_healthy(self) -> None:
        wait_until(
            lambda: answers(f"{self.url}/health"),
            START_SECONDS,
            lambda: self._log.read_text(errors="replace")[-4000:],
            every=0.5,
        )

    def kill_engine(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        [engine] = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        engine.kill()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    found = Supervised(tmp_path / "server.log")
    try:
        found.wait_until_healthy()
        yield found
    finally:
        found.stop()


QUESTION = "What color is the B?"
LONG = {"model": "demo", "max_tokens": 900, "ignore_eos": True}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {**LONG, "messages": [{"role": "user", "content": QUESTION}]},
    COMPLETION: {**LONG, "prompt": QUESTION},
    RESPONSES: {"model": "demo", "max_output_tokens": 900, "ignore_eos": True, "input": QUESTION},
}


def ask(url: str, path: str, stream: bool, begun: threading.Semaphore) -> tuple[int, str]:
    """Status and text of a long request; ``begun`` is released with the first of a stream."""
    with httpx.stream(
        "POST", url + path, json=BODIES[path] | {"stream": stream}, timeout=120
    ) as answer:
        lines = []
        for line in answer.iter_lines():
            if not lines:
                begun.release()
            lines.append(line)
        return answer.status_code, "\n".join(lines)


def check_told(path: str, stream: bool, found: tuple[int, str]) -> None:
    """503 in OpenAI's form, or a stream whose last event says the same."""
    status, text = found
    if not stream:
        assert status == 503, text
        assert json.loads(text)["error"]["code"] == "engine_dead"
        return
    assert status == 200
    events = [line for line in text.splitlines() if line.startswith("data: {")]
    last = json.loads(events[-1].removeprefix("data: "))
    error = last if path == RESPONSES else last["error"]
    assert error["code"] == "engine_dead", last
    assert error["message"]
    if path == RESPONSES:
        assert last["type"] == "error"
        assert last["sequence_number"] == len(events) - 1


def test_a_killed_engine_is_told_of_and_replaced(supervised: Supervised) -> None:
    url, begun = supervised.url, threading.Semaphore(0)
    asked = [(path, stream) for path in BODIES for stream in (True, False)]
    found: dict[tuple[str, bool], tuple[int, str]] = {}

    def run(path: str, stream: bool) -> None:
        found[path, stream] = ask(url, path, stream, begun)

    threads = [threading.Thread(target=run, args=each) for each in asked]
    for thread in threads:
        thread.start()
    for path in BODIES:
        assert begun.acquire(timeout=LIVENESS_SECONDS), path
    wait_until_running(url, len(asked))
    supervised.kill_engine()
    killed = time.monotonic()
    wait_until(lambda: not answers(f"{url}/health"), LIVENESS_SECONDS)
    red = time.monotonic() - killed
    refused = refused_after_death(url)
    wait_until(lambda: supervised.statuses, LIVENESS_SECONDS)
    ended = time.monotonic() - killed
    for thread in threads:
        thread.join(LIVENESS_SECONDS)
    supervised.wait_until_healthy()
    back = time.monotonic() - killed
    print(f"health red after {red:.2f} s, ended after {ended:.2f} s, back after {back:.1f} s")
    assert supervised.statuses == [1]
    for each in asked:
        check_told(*each, found[each])
    for answer in refused:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"
    short = BODIES[CHAT] | {"max_tokens": 2}
    answer = httpx.post(url + CHAT, json=short, timeout=120)
    assert answer.status_code == 200
    assert answer.json()["vtr"]["budget"] == 1.0


def refused_after_death(url: str) -> list[httpx.Response]:
    """Answers to what is asked of the dead engine, until nobody listens any more."""
    found = []
    for path, body in BODIES.items():
        for stream in (True, False):
            try:
                found.append(httpx.post(url + path, json=body | {"stream": stream}, timeout=60))
            except httpx.TransportError:
                return found
    return found


def wait_until_running(url: str, count: int) -> None:
    """Until the engine has all the requests."""

    def running() -> float:
        text = httpx.get(f"{url}/metrics", timeout=LIVENESS_SECONDS).text
        lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
        return sum(float(line.split()[-1]) for line in lines)

    wait_until(lambda: running() >= count, LIVENESS_SECONDS)
