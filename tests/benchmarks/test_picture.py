"""README's picture: which patches each panel shows."""

from __future__ import annotations

from PIL import Image

from benchmarks.picture import SIDE, bands, draw, faded

CUTS = [{"layer": 0, "kept": [0, 1, 3]}, {"layer": 2, "kept": [3]}, {"layer": 3, "kept": []}]


def test_a_band_lasts_until_the_next_cut() -> None:
    assert bands(CUTS, 4) == [(0, 1, [0, 1, 3]), (2, 2, [3]), (3, 3, [])]


def test_patches_that_stay_are_as_they_were() -> None:
    image = Image.new("RGB", (8, 8), (200, 0, 0))
    shown = faded(image, (2, 2), [3])
    assert shown.getpixel((SIDE - 1, SIDE - 1)) == (200, 0, 0)
    assert min(shown.getpixel((0, 0))) > 200


def test_layers_without_tokens_have_no_panel() -> None:
    def answer(text: str) -> dict[str, object]:
        return {"choices": [{"message": {"content": text}}]}

    facts = {
        "budget": 0.25,
        "flops_fraction": 0.3,
        "kept_per_layer": [3, 3, 1, 0],
        "trace": {"images": [{"grid": [2, 2]}], "cuts": CUTS},
    }
    image = Image.new("RGB", (8, 8), "red")
    one = draw("What?", image, answer("red"), answer("red") | {"vtr": facts})
    facts["trace"] = {"images": [{"grid": [2, 2]}], "cuts": CUTS[:1]}
    assert (
        one.width - draw("What?", image, answer("red"), answer("red") | {"vtr": facts}).width > SIDE
    )
