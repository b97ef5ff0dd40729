"""The page's style: no sideways scrolling on a phone, and contrast by WCAG's own formula."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.page.conftest import Light, OpenPage
from tests.server.page.test_images import png, upload

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}

# Every element with text of its own, and every border of a control: contrast and what it is.
CONTRASTS = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ratio = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] === undefined || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const shown = [...document.querySelectorAll("body *")].filter((e) =>
    !e.closest("[hidden], noscript") && e.getClientRects().length && !e.disabled);
  const texts = shown.filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  const controls = shown.filter((e) => e.matches("input:not([type=range], [type=file]), textarea, select"));
  const name = (e) => `${e.tagName} ${e.id} ${e.className} ${e.textContent.trim().slice(0, 30)}`;
  return {
    text: texts.map((e) => {
      const style = getComputedStyle(e);
      return [ratio(parse(e.closest("svg") ? style.fill : style.color), ground(e)), name(e)];
    }),
    control: controls.map((e) => [ratio(parse(getComputedStyle(e).borderTopColor), ground(e)), name(e)]),
  };
}"""

WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


def check_contrast(page: Page) -> None:
    found: dict[str, list[Any]] = page.evaluate(CONTRASTS)
    assert len(found["text"]) > 25
    assert len(found["control"]) > 1
    assert [entry for entry in found["text"] if entry[0] < 4.5] == []
    assert [entry for entry in found["control"] if entry[0] < 3] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_that_reading_needs(
    open_page: OpenPage, light: Light, scheme: str
) -> None:
    page = open_page(light(), expected=("404",), color_scheme=scheme)
    upload(page, png(16, 16))
    page.get_by_label("Question").fill("What?")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers .error")).to_have_count(2)
    check_contrast(page)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(16, 19, 22)") == (scheme == "dark")


def test_a_phone_never_scrolls_sideways(open_page: OpenPage, light: Light) -> None:
    page = open_page(light(), expected=("404",), **PHONE)
    expect(page.locator("#jobs")).to_be_visible()
    page.get_by_label("Question").fill("W" * 200)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers .error")).to_have_count(2)
    assert page.evaluate(WIDTHS) == [360, 360]
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input:not([type=file])")]
          .filter((e) => e.getClientRects().length && e.getBoundingClientRect().height < 24)
          .map((e) => e.outerHTML)"""
    )
    assert small == []  # WCAG 2.5.8: 24 pixels for a finger
