"""The section of search jobs, on the real job service with a search in the small."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.server.jobs.conftest import Place
from tests.server.page.conftest import Light, OpenPage
from tests.server.page.test_api import KEY, key_of


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


def test_what_was_found_so_far_is_shown_while_the_search_runs(
    open_page: OpenPage, light: Light, place: Place
) -> None:
    place.control(hold_at=2)
    page = open_page(light())
    start(page, data="items.jsonl", budgets="0.5, 0.25")
    found = page.get_by_role("list", name="Schedules found so far").get_by_role("listitem")
    expect(found).to_have_text([re.compile(r"^g-search-0\.5-seed0: .*vision tokens, by g-search$")])
    expect(page.get_by_role("img", name="Keep rates")).to_have_js_property("naturalWidth", 4)
    expect(page.locator("#job-progress-text")).to_contain_text("2 of about 3 requests")
    expect(page.locator("#job-progress")).to_have_js_property("position", 2 / 3)
    place.control()
    expect(page.locator("#job-progress")).to_have_js_property("position", 1)


def test_a_report_opens_with_the_key_that_a_link_would_not_send(
    open_page: OpenPage, light: Light, place: Place
) -> None:
    page = open_page(light(keys=(key_of("generate", "jobs"),)), expected=("401",))
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    start(page, data="items.jsonl", budgets="0.5")
    expect(page.locator("#job-rows tr")).to_contain_text("done")
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Open the report").click()
    report = opened.value
    expect(report.get_by_role("heading", name="Report")).to_have_css("color", "rgb(1, 2, 3)")
    expect(report.get_by_role("img", name="Keep rates")).to_have_js_property("naturalWidth", 4)
    with report.expect_download() as download:
        report.get_by_role("link", name="trials.csv").click()
    assert download.value.suggested_filename == "trials.csv"


def test_what_a_job_found_is_published(open_page: OpenPage, light: Light, place: Place) -> None:
    page = open_page(light())
    start(page, data="items.jsonl", budgets="0.5, 0.25")
    page.get_by_role("button", name="Publish job").click()
    expect(page.locator("#job-note")).to_have_text(
        "Published g-search-0.25-seed0, g-search-0.5-seed0."
    )
    names = sorted(path.stem for path in place.published.glob("*.json"))
    assert names == ["g-search-0.25-seed0", "g-search-0.5-seed0"]


def test_a_broken_job_is_shown_as_such(open_page: OpenPage, light: Light, place: Place) -> None:
    (place.jobs / ("0" * 16)).mkdir(parents=True)
    (place.jobs / ("0" * 16) / "job.json").write_text("{")
    page = open_page(light())
    expect(page.locator("#job-rows tr")).to_contain_text("broken: job.json is malformed")
