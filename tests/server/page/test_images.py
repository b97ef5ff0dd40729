"""Images on their way in: chosen, pasted, dropped; scaled down only where they must be."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect

from tests.server.page.conftest import Light, OpenPage


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((width, height), 40).save(out, "PNG")
    return out.getvalue()


def upload(page: Page, *bodies: bytes, name: str = "drawn.png") -> None:
    files: Any = [{"name": name, "mimeType": "image/png", "buffer": body} for body in bodies]
    page.locator("#files").set_input_files(files)


def sent(page: Page) -> list[bytes]:
    """The images of the next request that the page sends."""
    with page.expect_request("**/v1/chat/completions") as caught:
        page.get_by_label("Question").fill("What?")
        page.get_by_role("button", name="Ask").click()
    content = json.loads(caught.value.post_data or "")["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def test_an_image_within_the_limit_is_sent_as_it_is(open_page: OpenPage, light: Light) -> None:
    page = open_page(light(image_pixels=5000), expected=("404",))
    given = png(100, 50)
    upload(page, given)
    expect(page.locator("#thumbs img")).to_have_count(1)
    expect(page.locator("#image-note")).to_be_empty()
    assert sent(page) == [given]


def test_a_larger_one_is_scaled_down_and_that_is_said(open_page: OpenPage, light: Light) -> None:
    page = open_page(light(image_pixels=5000), expected=("404",))
    upload(page, png(400, 200))
    note = page.locator("#image-note")
    expect(note).to_contain_text("scaled down from 400 × 200 to 100 × 50")
    expect(note).to_contain_text("5,000 pixels")
    (image,) = sent(page)
    assert Image.open(io.BytesIO(image)).size == (100, 50)


def test_more_images_than_the_server_takes_are_left_out(open_page: OpenPage, light: Light) -> None:
    page = open_page(light(images=2), expected=("404",))
    upload(page, *[png(8, 8)] * 3)
    expect(page.locator("#image-note")).to_contain_text("at most 2 images")
    expect(page.locator("#thumbs img")).to_have_count(2)
    page.get_by_role("button", name="Remove").first.press("Enter")
    expect(page.locator("#thumbs img")).to_have_count(1)
    expect(page.get_by_role("button", name="Remove")).to_be_focused()
    assert len(sent(page)) == 1


def test_what_is_no_image_is_refused_by_name(open_page: OpenPage, light: Light) -> None:
    page = open_page(light())
    upload(page, b"not an image", name="notes.png")
    expect(page.locator("#image-note")).to_contain_text("notes.png is no image")
    expect(page.locator("#thumbs img")).to_have_count(0)


GIVE = """([kind, bytes]) => {
  const file = new File([new Uint8Array(bytes)], "given.png", { type: "image/png" });
  const data = new DataTransfer();
  data.items.add(file);
  const init = { bubbles: true, cancelable: true };
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { ...init, clipboardData: data })
    : new DragEvent("drop", { ...init, dataTransfer: data });
  document.body.dispatchEvent(event);
}"""


def test_an_image_may_be_pasted_or_dropped(open_page: OpenPage, light: Light) -> None:
    page = open_page(light())
    for count, kind in enumerate(("paste", "drop"), 1):
        page.evaluate(GIVE, [kind, list(png(8, 8))])
        expect(page.locator("#thumbs img")).to_have_count(count)
    assert page.url.endswith("/")  # the browser did not open the file


def test_a_sample_fills_in_image_and_question(open_page: OpenPage, light: Light) -> None:
    page = open_page(light())
    sample = page.locator(".sample").first
    sample.click()
    expect(page.get_by_label("Question")).to_have_value(sample.inner_text())
    expect(page.locator("#thumbs img")).to_have_count(1)
