"""The screenshots of docs/page.md, from a real server: ``make screenshots``.

Give it the address of a server with the demo model, or nothing, and it starts one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect, sync_playwright

from tests.running import answers, free_port
from tests.server.page.conftest import FLAGS, WAIT_MS, chromium

FOLDER = Path(__file__).parents[3] / "docs" / "assets"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
SHOTS: dict[str, tuple[int, str | None, dict[str, Any]]] = {
    "page-desktop": (0, None, DESKTOP),
    "page-dark": (2, "#patches", DESKTOP | {"color_scheme": "dark"}),
    "page-phone": (1, "#patches", PHONE),
}
"""File -> the sample asked about, where the screen begins (None: the whole page), the browser."""


@contextmanager
def served() -> Iterator[str]:
    """``vtr serve demo`` on a free port, until it is no longer wanted."""
    port = free_port()
    command = [sys.executable, "-m", "vtr_vllm.cli", "serve", "demo", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"VLLM_LOGGING_LEVEL": "WARNING"})
    url = f"http://127.0.0.1:{port}"
    try:
        while not answers(f"{url}/health"):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}")
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait()


def shoot(browser: Browser, url: str, name: str) -> None:
    """Ask about a sample at a quarter, and keep what the page then shows."""
    sample, start, options = SHOTS[name]
    page = browser.new_context(**options).new_page()
    page.goto(url)
    page.locator(".sample").nth(sample).click()
    expect(page.locator("#thumbs img")).to_have_count(1)
    page.get_by_role("button", name="economy").click()
    for _ in range(2):  # the first question of a fresh server also pays for what it sets up
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#progress")).to_contain_text("Done", timeout=WAIT_MS)
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    if start is not None:
        page.evaluate(
            "(start) => document.querySelector(start).scrollIntoView({ behavior: 'instant' })",
            start,
        )
    page.screenshot(path=FOLDER / f"{name}.png", full_page=start is None)
    page.context.close()


def main(arguments: list[str]) -> int:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        for name in SHOTS:
            shoot(browser, arguments[0], name)
        browser.close()
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        raise SystemExit(main(sys.argv[1:]))
    with served() as address:
        raise SystemExit(main([address]))
