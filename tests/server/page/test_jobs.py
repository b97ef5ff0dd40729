"""The section of search jobs, on the real job service with a search in the small."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.server.jobs.conftest import Place
from tests.server.page.conftest import Light, OpenPage


def start(page: Page, data: str, budgets: str) -> None:
    page.get_by_label("Data file").fill(data)
    page.get_by_label("Budgets").fill(budgets)
    page.get_by_label("Kind").select_option("g-search")
    page.get_by_role("button", name="Start").click()


def test_a_job_is_started_and_followed_to_its_end(
    open_page: OpenPage, light: Light, place: Place
) -> None:
    page = open_page(light())
    start(page, data="items.jsonl", budgets="0.5, 0.25")
    row = page.locator("#job-rows tr")
    expect(row).to_contain_text("done")
    expect(row).to_contain_text("g-search · items.jsonl · 0.5, 0.25")
    events = page.get_by_role("log")
    expect(events.locator("li", has_text=re.compile("^step "))).not_to_have_count(0)
    expect(events.locator("li").last).to_have_text("state done")
    expect(page.locator("#job-note")).to_contain_text("is queued")


def test_a_running_job_is_cancelled_and_resumed(
    open_page: OpenPage, light: Light, place: Place
) -> None:
    place.control(hold_at=1)
    page = open_page(light())
    start(page, data="items.jsonl", budgets="0.5")
    page.get_by_role("button", name="Cancel job").click()
    expect(page.locator("#job-rows tr")).to_contain_text("cancelled")
    place.control()
    page.get_by_role("button", name="Resume job").click()
    page.get_by_role("button", name="Watch job").click()
    expect(page.locator("#job-rows tr")).to_contain_text("done")


def test_what_the_service_refuses_is_said(open_page: OpenPage, light: Light) -> None:
    page = open_page(light(), expected=("400",))
    start(page, data="../secret.jsonl", budgets="0.5")
    expect(page.locator("#job-note")).to_contain_text("../secret.jsonl")
    start(page, data="items.jsonl", budgets="half")
    expect(page.locator("#job-note")).to_contain_text("Budgets are numbers")
    expect(page.locator("#job-rows tr")).to_have_count(0)
