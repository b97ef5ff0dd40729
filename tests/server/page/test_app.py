"""The whole path in a real browser on a real server with the demo model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.running import wait_until
from tests.server.conftest import STEP_TOKENS, Server
from tests.server.page.asking import PATCHES, UNCHANGED, ask, numbers, png, upload
from tests.server.page.conftest import OpenPage
from tests.server.page.test_style import PHONE, WIDTHS, check_contrast
from vtr_vllm.demo import CHECKPOINT, sample

pytestmark = pytest.mark.engine

SEARCHED = "searched-0.25"


@pytest.fixture(scope="module", autouse=True)
def searched(server: Server) -> Iterator[None]:
    """The schedule that was searched for the demo model, published while these tests run."""

    def until(listed: bool) -> None:
        with server.client() as client:
            wait_until(lambda: (SEARCHED in client.get("/v1/schedules").text) == listed)

    source = CHECKPOINT.with_name("schedules") / f"{SEARCHED}.json"
    copied = shutil.copy(source, server.schedules)
    until(listed=True)
    yield
    server.schedules.joinpath(copied).unlink()
    until(listed=False)


@pytest.mark.parametrize("index", [0, 3, 8, 12])  # a colour, two of a kind, two hops
def test_at_a_quarter_the_patches_asked_about_survive(
    open_page: OpenPage, server: Server, index: int
) -> None:
    drawn = sample("test", index)
    page = open_page(server.url)
    upload(page, png(drawn))
    page.get_by_label("Question").fill(drawn.question)
    page.get_by_role("button", name="economy").click()
    full, quarter = ask(page)
    assert (full.text, quarter.text) == (drawn.answer, drawn.answer)
    for card, answer in zip(("full", "chosen"), (full, quarter), strict=True):
        expect(page.locator(f"#answer-{card} .said")).to_have_text(answer.text)

    middle = len(quarter.facts["kept_per_layer"]) // 2
    assert page.locator("#layer").input_value() == str(middle)
    kept = quarter.kept_at(middle)
    assert set(drawn.targets) <= kept
    assert len(kept) < PATCHES**2 / 4
    assert set(page.evaluate(UNCHANGED, 0)) == kept


def test_the_numbers_are_those_of_the_answers(open_page: OpenPage, server: Server) -> None:
    drawn = sample("test", 0)
    page = open_page(server.url)
    upload(page, png(drawn))
    page.get_by_label("Question").fill(drawn.question)
    page.get_by_role("button", name="economy").click()
    _, quarter = ask(page)
    facts, shown = quarter.facts, numbers(page)
    assert shown["Vision tokens"] == ["144", "144"]
    assert shown["Mean keep"] == ["100 %", f"{100 * facts['mean_keep']:.0f} %"]
    assert shown["Prefill compute"] == ["100 %", f"{100 * facts['flops_fraction']:.0f} %"]
    assert shown["Schedule"] == ["full", SEARCHED]
    assert shown["Source"] == ["full", "searched"]
    assert shown["Prompt KV saved"][0] == "0 %"
    saved = int(shown["Prompt KV saved"][1].removesuffix(" %")) / 100
    assert 0 < saved < 1 - facts["mean_keep"]  # the text keeps its own
    for cell in shown["Time to first token"] + shown["Total time"]:
        assert re.fullmatch(r"[0-9]+ ms|[0-9]+\.[0-9]{2} s", cell)


@pytest.mark.parametrize("reuse", [True, False])
def test_a_second_question_shows_what_reuse_is_worth(
    open_page: OpenPage, server: Server, reuse: bool
) -> None:
    drawn = sample("test", 0)
    page = open_page(server.url)
    upload(page, png(drawn))
    page.get_by_label("Question").fill(drawn.question)
    page.get_by_role("button", name="economy").click()
    page.get_by_label("For a conversation").set_checked(reuse)
    expect(page.locator("#next-form")).to_be_hidden()
    for told in ask(page):
        assert told.facts["vision_tokens_cached"] == 0
    patches = page.locator("#kept").inner_text()

    page.get_by_label("Next, about the same image").fill("Is there a 9?")
    full, quarter = ask(page, "Ask both")
    assert quarter.facts["reuse"] == reuse
    cached = [told.facts["vision_tokens_cached"] for told in (full, quarter)]
    assert cached[0] > 100  # up to a block's end
    assert cached[1] > 100 if reuse else cached[1] == 0
    assert numbers(page)["Of them from the cache"] == [str(count) for count in cached]
    expect(page.locator("#numbers caption")).to_have_text("What each answer to question 2 took")
    expect(page.locator("#asked")).to_have_text("Question 2: Is there a 9?")
    assert page.locator("#kept").inner_text() == patches

    assert [told.facts["vision_tokens_cached"] for told in ask(page)] == [0, 0]


def test_by_keyboard_alone_on_a_dark_phone(open_page: OpenPage, server: Server) -> None:
    page = open_page(server.url, color_scheme="dark", **PHONE)
    expect(page.locator(".sample")).to_have_count(3)
    seen = []

    def tab_to(selector: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to(".sample")
    page.keyboard.press("Enter")
    expect(page.locator("#thumbs img")).to_have_count(1)
    tab_to("#budget")
    page.keyboard.press("Home")
    expect(page.locator("#budget-value")).to_have_text("0.25 · economy")
    tab_to("#ask")
    page.keyboard.press("Enter")
    expect(page.locator("#progress")).to_contain_text("Done")
    expect(page.locator("#ask")).to_be_focused()
    tab_to("#layer")
    page.keyboard.press("Home")
    for _ in range(12):
        seen.append(page.locator("#kept").inner_text())
        page.keyboard.press("ArrowRight")
    counts = [int(text.split()[2]) for text in seen]
    assert (counts, len(set(counts)) > 3) == (sorted(counts, reverse=True), True)
    assert page.evaluate(WIDTHS) == [360, 360]
    check_contrast(page)


def test_what_the_server_refuses_is_shown_beside_what_it_answers(
    open_page: OpenPage, server: Server
) -> None:
    images = [png(sample("test", number)) for number in range(4)]
    assert PATCHES**2 * len(images) > STEP_TOKENS
    page = open_page(server.url, expected=("400",))
    upload(page, *images)
    page.get_by_label("Question").fill("What color is the B?")
    page.get_by_role("button", name="economy").click()
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#progress")).to_contain_text("could not be answered")
    expect(page.locator("#answer-chosen .error")).to_contain_text("--max-num-batched-tokens")
    expect(page.locator("#answer-full .error")).to_have_count(0)
    assert numbers(page)["Vision tokens"] == ["576", "–"]
