"""The page's document: names for every control, an order for the keyboard, headings that nest."""

from __future__ import annotations

from itertools import pairwise

import pytest
from playwright.sync_api import Page, expect

from tests.server.page.conftest import Light, OpenPage
from tests.server.page.test_images import png, upload

NAMELESS = """() => [...document.querySelectorAll("input, select, textarea, button, a, canvas, svg")]
  .filter((element) => !element.closest("[hidden]"))
  .filter((element) => {
    const labels = [...(element.labels ?? [])].map((label) => label.textContent).join("");
    const other = element.getAttribute("aria-label") ?? element.textContent;
    return !(labels || other).trim();
  })
  .map((element) => element.outerHTML)"""

DANGLING = """() => [...document.querySelectorAll("*")].flatMap((element) =>
  ["aria-describedby", "aria-labelledby", "for"]
    .map((name) => element.getAttribute(name))
    .filter((id) => id && !document.getElementById(id)))"""

REPEATED = """() => {
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  return ids.filter((id, index) => ids.indexOf(id) !== index);
}"""

HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4")]
  .filter((element) => !element.closest("[hidden]")).map((element) => Number(element.tagName[1]))"""

FOCUSED = """() => {
  const element = document.activeElement;
  const ring = element.id === "files" ? element.nextElementSibling.firstElementChild : element;
  const style = getComputedStyle(ring);
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  return [element.id || element.textContent.trim(), seen];
}"""


@pytest.fixture
def page(open_page: OpenPage, light: Light) -> Page:
    """With an image, and with answers, which are errors here: there is no engine."""
    page = open_page(light(), expected=("404",))
    expect(page.locator(".sample")).to_have_count(3)
    upload(page, png(16, 16))
    page.get_by_label("Question").fill("What?")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers .error")).to_have_count(2)
    return page


def test_every_control_has_a_name_and_every_reference_leads_somewhere(page: Page) -> None:
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(DANGLING) == []
    assert page.evaluate(REPEATED) == []


def test_headings_nest_and_the_page_has_landmarks(page: Page) -> None:
    levels = page.evaluate(HEADINGS)
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for role in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]
    assert page.evaluate("document.documentElement.lang") == "en"
    for live in ("#progress", "#image-note", "#job-note"):
        expect(page.locator(live)).to_have_attribute("role", "status")
    expect(page.locator("#problem")).to_have_attribute("role", "alert")


def test_the_keyboard_goes_through_the_page_in_its_order_and_is_seen(page: Page) -> None:
    page.locator(".skip").focus()
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name, seen = page.evaluate(FOCUSED)
        assert seen, f"{name} shows no focus"
        reached.append(name)
        if name == "Start":
            break
    expected = [
        *("files", "Remove"),
        *page.locator(".sample").all_inner_texts(),
        *(
            "question",
            "budget",
            *page.locator("#tiers button").all_inner_texts(),
            "reuse",
            "length",
            "ask",
        ),
        *("job-kind", "job-model", "job-data", "job-budgets", "job-minutes", "Start"),
    ]
    assert reached == expected


def test_the_skip_link_leads_to_the_question(page: Page) -> None:
    page.get_by_role("link", name="Skip to the question").press("Enter")
    expect(page.get_by_label("Question")).to_be_focused()
