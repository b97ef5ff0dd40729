"""One real server for the tests that need it, as ``vtr serve`` starts it.

The fixtures are in tests/conftest.py: the examples of the documentation ask the same server.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.running import free_port, wait_until_up
from vtr_vllm.own_models import CHECKPOINT

START_SECONDS = 480  # a loaded machine of two cores
NAME = "tested"
STEP_TOKENS = 500  # what one scheduler step takes: small, so that a few images exceed it
BODY_BYTES = 4 * 2**20
IMAGES = 4  # more than one step takes
IMAGE_PIXELS = 2**20
SETTINGS = f"""\
[tiers]
lossless = "lossless"
balanced = 0.5
economy = 0.25
halved = "stored-half"

[detail]
low = "economy"
auto = 0.75
high = "full"

[elastic]
ttft_seconds = 100.0  # never in danger: auto is the highest level within the bounds

[limits]
body_bytes = {BODY_BYTES}
images = {IMAGES}
image_pixels = {IMAGE_PIXELS}
"""
"""Limits that a test can cross, and everything that changes how a request may ask."""


@dataclass(frozen=True)
class Server:
    """Where the server listens, and what it has written so far."""

    url: str
    log: Path
    schedules: Path
    """Folder that the server looks at; a test that writes into it leaves it as it was."""
    pid: int
    """Of the API server's process; the engine's are its children."""
    model: str = NAME

    def client(self) -> httpx.Client:
        """A client that waits as long as a slow machine needs."""
        return httpx.Client(base_url=self.url, timeout=120)


def checkpoint() -> Path:
    """The model to serve: ``VTR_TEST_MODEL``, the packaged demo, or a tiny random one."""
    if given := os.environ.get("VTR_TEST_MODEL"):
        return Path(given)
    if (CHECKPOINT / "config.json").is_file():
        return CHECKPOINT
    from tests.tiny import tiny_llava

    return tiny_llava()


def store_schedules(folder: Path) -> None:
    """Write one schedule for the tested model, of budget 0.5, and a family.

    Questions with the word "color" need its third schedule, the others its first.
    """
    import json

    from tests.vtr_vllm.adaptive.families import family
    from vtr_vllm.adaptive.family import FILE
    from vtr_vllm.demo.tokenizer import IDS
    from vtr_vllm.schedules import ModelGeometry, Schedule, fastv

    text = json.loads((checkpoint() / "config.json").read_text())["text_config"]
    form = fastv(ModelGeometry.from_config(text), 0.5)
    stored = Schedule(
        "stored-half", form.geometry, form.keep, form.rules, method="g-search", budget=0.5
    )
    stored.save(folder / "stored-half.json")
    first, second = form.geometry.layers // 2, form.geometry.layers - form.geometry.layers // 2
    shares = ((0.25, 0.0), (0.5, 0.25), (1.0, 0.5))
    keeps = tuple((one,) * first + (other,) * second for one, other in shares)
    family(form.geometry, keeps, hard=IDS["color"]).save(folder / FILE)


def serve(schedules: Path, folder: Path, *more: str, policy: str = SETTINGS) -> Iterator[Server]:
    """A server process on a free port, until it is asked for the next; ``folder`` is its own.

    ``more`` are further flags; ``policy`` is its settings file.
    """
    port = free_port()
    log = folder / "server.log"
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    flags += ["--enforce-eager", "--block-size", "32", "--schedules", str(schedules)]
    flags += ["--max-num-batched-tokens", str(STEP_TOKENS), "--max-num-seqs", "16"]
    settings = log.with_name("settings.toml")
    settings.write_text(policy)
    flags += ["--settings", str(settings), *more]
    command = [sys.executable, "-m", "vtr_vllm.cli", "serve", str(checkpoint()), *flags]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "INFO"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(process, f"{url}/health", log, START_SECONDS)
        yield Server(url, log, schedules, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
