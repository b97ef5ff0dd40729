"""Keys, refusals and broken connections, as the page tells of them."""

from __future__ import annotations

import hashlib
import json

import pytest
from playwright.sync_api import Route, expect

from tests.server.page.conftest import Light, OpenPage, offer
from vtr_server.policy.settings import KeySettings

KEY = "a-key-of-the-tests"


def key_of(*scopes: str) -> KeySettings:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    return KeySettings.model_validate({"name": "tests", "sha256": digest, "scopes": scopes})


def test_a_server_with_keys_asks_for_one_and_the_tab_keeps_it(
    open_page: OpenPage, light: Light
) -> None:
    url = light(keys=(key_of("generate"),))
    page = open_page(url, expected=("401", "403"))
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(page.get_by_role("alert")).to_contain_text("API key is missing or unknown")
    field.fill("wrong")
    field.press("Enter")
    expect(field).to_have_value("")
    expect(page.locator("#served")).to_have_text("Not connected")
    field.fill(KEY)
    field.press("Enter")
    expect(page.locator("#served")).to_contain_text("demo")
    expect(field).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#jobs")).to_be_hidden()  # this key has no scope for them
    page.reload()
    expect(page.locator("#served")).to_contain_text("demo")
    kept = page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert kept == [[KEY], 0, ""]


def test_a_key_with_the_scope_sees_the_jobs(open_page: OpenPage, light: Light) -> None:
    page = open_page(light(keys=(key_of("generate", "jobs"),)), expected=("401",))
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#jobs")).to_be_visible()


def test_an_error_is_shown_in_the_words_of_the_server(open_page: OpenPage, light: Light) -> None:
    page = open_page(light(), expected=("404",))  # no engine here, so no such route
    page.get_by_label("Question").fill("What?")
    page.get_by_role("button", name="Ask").click()
    for card in page.locator(".answer").all():
        expect(card.locator(".error")).to_have_text("Not Found")
    expect(page.locator("#progress")).to_contain_text("could not be answered")
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()
    expect(page.locator("#patches")).to_be_hidden()


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ('data: {"error": {"message": "the request ran too long", "code": 504}}', "ran too long"),
        ("", "broke off before its end"),
    ],
)
def test_a_stream_that_does_not_end_well_keeps_its_text_and_says_so(
    open_page: OpenPage, light: Light, rest: str, said: str
) -> None:
    page = open_page(light())
    begun = 'data: {"choices": [{"delta": {"content": "It is"}}]}'
    stream = f"{begun}\r\n\r\n: still here\r\n\r\n{rest}\r\n\r\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=stream, content_type="text/event-stream"),
    )
    page.get_by_label("Question").fill("What?")
    page.get_by_role("button", name="Ask").click()
    for card in page.locator(".answer").all():
        expect(card.locator(".error")).to_contain_text(said)
        expect(card.locator("p").first).to_have_text("It is")


def test_where_full_budget_is_not_allowed_the_most_is_asked_for(
    open_page: OpenPage, light: Light
) -> None:
    page = open_page(light())
    bounded = offer() | {"budget": {"minimum": 0.0, "maximum": 0.5}}
    page.route("**/v1/schedules", lambda route: route.fulfill(json=bounded))
    page.reload()
    expect(page.locator("#budget-value")).not_to_be_empty()
    asked = []

    def answer(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or "")["vtr"])
        route.fulfill(body="", content_type="text/event-stream")

    page.route("**/v1/chat/completions", answer)
    page.get_by_label("Question").fill("What?")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer-chosen .error")).to_be_visible()
    assert asked[0] == {"budget": 0.5}
    expect(page.locator("#full-heading")).to_have_text("Budget 0.5, the most here")


def test_a_question_can_be_stopped(open_page: OpenPage, light: Light) -> None:
    page = open_page(light())
    page.route("**/v1/chat/completions", lambda route: None)  # held back, never sent on
    page.get_by_label("Question").fill("What?")
    page.get_by_role("button", name="Ask").click()
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_focused()
    stop.press("Enter")
    for card in page.locator(".answer").all():
        expect(card).to_contain_text("Stopped.")
    expect(stop).to_be_hidden()
    expect(page.get_by_role("button", name="Ask")).to_be_focused()


def test_a_server_that_is_gone_is_said(open_page: OpenPage, light: Light) -> None:
    page = open_page(light(), expected=("ERR_CONNECTION_REFUSED",))
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    page.get_by_label("Question").fill("What?")
    page.get_by_role("button", name="Ask").click()
    for card in page.locator(".answer").all():
        expect(card.locator(".error")).to_contain_text("cannot be reached")
