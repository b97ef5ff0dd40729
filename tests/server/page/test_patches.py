"""The overlay of the patches that survive, on a real server with the demo model."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.server.conftest import Server
from tests.server.page.asking import PATCHES, UNCHANGED, Told, ask, png, upload
from tests.server.page.conftest import OpenPage
from vtr_vllm.demo import sample

pytestmark = pytest.mark.engine


def asked(page: Page, *images: bytes, tier: str = "balanced") -> Told:
    upload(page, *images)
    page.get_by_label("Question").fill("What color is the B?")
    page.get_by_role("button", name=tier).click()
    return ask(page)[1]


def test_every_layer_shows_what_the_trace_says(open_page: OpenPage, server: Server) -> None:
    page = open_page(server.url)
    answer = asked(page, png(sample("test", 0)))
    for layer, count in enumerate(answer.facts["kept_per_layer"]):
        page.locator("#layer").fill(str(layer))
        kept = answer.kept_at(layer)
        assert len(kept) == count
        assert set(page.evaluate(UNCHANGED, 0)) == kept
        expect(page.locator("#kept")).to_contain_text(f"{layer} · {count} of 144 kept")
        name = f"The image: {count} of 144 patches seen by layer {layer}"
        expect(page.get_by_role("img", name=name)).to_be_visible()
        expect(page.locator("#chart g.now")).to_have_attribute("data-layer", str(layer))


def test_cuts_and_bars_lead_to_their_layer(open_page: OpenPage, server: Server) -> None:
    page = open_page(server.url)
    answer = asked(page, png(sample("test", 0)))
    cuts = [cut["layer"] for cut in answer.facts["trace"]["cuts"]]
    buttons = page.locator("#cuts button")
    expect(buttons).to_have_count(len(cuts))
    for button, layer in zip(buttons.all(), cuts, strict=True):
        button.press("Enter")
        expect(page.locator("#layer")).to_have_value(str(layer))
        expect(button).to_have_attribute("aria-pressed", "true")
    page.locator("#chart g").first.click()
    expect(page.locator("#layer")).to_have_value("0")


def test_several_images_have_an_overlay_each(open_page: OpenPage, server: Server) -> None:
    page = open_page(server.url)
    answer = asked(page, png(sample("test", 0)), png(sample("test", 1)))
    kept = answer.kept_at(len(answer.facts["kept_per_layer"]) // 2)
    for number in range(2):
        own = {token - number * PATCHES**2 for token in kept}
        assert set(page.evaluate(UNCHANGED, number)) == own & set(range(PATCHES**2))


def test_play_runs_to_the_last_layer(open_page: OpenPage, server: Server) -> None:
    page = open_page(server.url)
    asked(page, png(sample("test", 0)))
    play = page.get_by_role("button", name="Play")
    play.click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.locator("#layer")).to_have_value("11")
    expect(play).to_be_visible()


def test_nothing_plays_where_motion_is_unwanted(open_page: OpenPage, server: Server) -> None:
    page = open_page(server.url, reduced_motion="reduce")
    asked(page, png(sample("test", 0)))
    expect(page.locator("#play")).to_be_hidden()
    page.locator("#layer").press("ArrowRight")
    expect(page.locator("#layer")).to_have_value("7")


def test_a_wide_image_shows_the_square_that_the_model_sees(
    open_page: OpenPage, server: Server
) -> None:
    wide = Image.effect_noise((240, 120), 60).convert("RGB")
    out = io.BytesIO()
    wide.save(out, "PNG")
    page = open_page(server.url)
    asked(page, out.getvalue(), tier="full")
    expect(page.locator("#patches-note")).to_contain_text("square from the middle")
    # at full budget nothing is dropped: columns 3 to 8 of 12 are the square
    expected = [patch for patch in range(144) if 3 <= patch % 12 < 9]
    assert page.evaluate(UNCHANGED, 0) == expected
    expect(page.locator("#cuts-block")).to_be_hidden()
