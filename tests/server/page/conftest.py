"""A real Chromium, and servers to point it at."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.running import wait_until
from tests.server.jobs.conftest import Place
from tests.server.jobs.conftest import place as place  # the fixture
from vtr_server.gate.middleware import install
from vtr_server.jobs.app import create_app
from vtr_server.page import routes as pages
from vtr_server.page.routes import page_data
from vtr_server.policy.schedule_choice import ScheduleChooser, describe
from vtr_server.policy.settings import KeySettings, ServerSettings
from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.schedules import ModelGeometry, ScheduleBook

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WAIT_MS = 60_000  # a loaded machine of two cores

OpenPage = Callable[..., Page]
Light = Callable[..., str]


def chromium() -> str | None:
    """Path of a Chromium: ``VTR_CHROMIUM``, or what the system has."""
    found = (shutil.which(name) for name in (os.environ.get("VTR_CHROMIUM", ""), *NAMES))
    return next((path for path in found if path), None)


@pytest.fixture(scope="module")  # Playwright's event loop runs as long: others could start none
def browser() -> Iterator[Browser]:
    """One browser for a module; without one its tests are skipped, or fail where tools must be."""
    path = chromium()
    if path is None:
        message = "there is no Chromium; install one or name it in VTR_CHROMIUM"
        if os.environ.get("VTR_REQUIRE_TOOLS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def offer() -> dict[str, Any]:
    """GET /v1/schedules of the demo model with its packaged schedules."""
    text = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
    geometry = ModelGeometry.from_config(text)
    book = ScheduleBook.from_folder(geometry, CHECKPOINT.with_name("schedules"))
    return describe(ScheduleChooser(book, ServerSettings().tiers))


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve ``app`` on a free port, in a thread."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)


@pytest.fixture
def light(place: Place) -> Iterator[Light]:
    """Serves all but the engine: the page, its gate, the offer, and real jobs; returns the URL."""
    with ExitStack() as stack:

        def start(keys: tuple[KeySettings, ...] = (), **limits: int) -> str:
            settings = ServerSettings.model_validate(
                {"limits": limits, "jobs": {"memory_share": 0.3}, "keys": keys}
            )
            app = create_app(place.settings())
            app.include_router(pages.router)
            app.state.page = page_data(str(CHECKPOINT), {}, settings)
            app.add_api_route("/v1/models", lambda: {"data": [{"id": "demo"}]})
            app.add_api_route("/v1/schedules", offer)
            install(app, settings)
            return stack.enter_context(listening(app))

        yield start


@pytest.fixture
def open_page(browser: Browser, light: Light) -> Iterator[OpenPage]:  # ends before ``light``
    """Opens a page and waits until it is connected.

    Afterwards no page may have raised, nor broken its security policy, nor loaded anything that
    was missing: what may go wrong is what ``expected`` names.
    """
    said: list[str] = []

    def open_page(url: str, expected: tuple[str, ...] = (), **options: Any) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: _note(said, message.type, message.text, expected))
        page.goto(url)
        expect(page.locator("#served")).not_to_have_text("Connecting")
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert said == []


def _note(said: list[str], kind: str, text: str, expected: tuple[str, ...]) -> None:
    if kind in ("error", "warning") and not any(word in text for word in expected):
        said.append(text)
