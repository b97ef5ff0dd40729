"""Draws README's picture: a question, its image with the patches that stay, and both answers.

``python -m benchmarks.picture --out docs/assets/reduction.png`` asks a server of the demo model, which
it starts, at full budget and at the one given; the patches are those of the answer's own trace.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw, ImageFont

from benchmarks.serving import Served, content
from vtr_vllm.demo import CHECKPOINT, sample

SIDE = 216
"""Pixels of a panel; a multiple of the demo model's 12 patches."""
GAP, LEFT, TOP, BOTTOM = 16, 16, 52, 60
INK, PALE, LINE = (32, 32, 36), (110, 110, 118), (205, 205, 210)


def ask(http: httpx.Client, image: Image.Image, question: str, budget: float) -> dict[str, Any]:
    """The answer of ``/v1/chat/completions`` to one question, with its trace."""
    body = {
        "model": "demo",
        "max_tokens": 8,
        "temperature": 0,
        "vtr": {"budget": budget, "trace": True},
        "messages": [{"role": "user", "content": content(image, question)}],
    }
    answer = http.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def bands(cuts: Sequence[Mapping[str, Any]], layers: int) -> list[tuple[int, int, list[int]]]:
    """(first layer, last layer, patches seen there) from cut to cut; full layers are left out."""
    ends = [int(cut["layer"]) for cut in cuts[1:]] + [layers]
    return [
        (int(cut["layer"]), end - 1, list(cut["kept"])) for cut, end in zip(cuts, ends, strict=True)
    ]


def faded(image: Image.Image, grid: Sequence[int], kept: Sequence[int]) -> Image.Image:
    """The image [SIDE x SIDE] with every patch that is gone nearly white."""
    shown = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    white = Image.blend(shown, Image.new("RGB", shown.size, "white"), 0.88)
    rows, columns = grid
    for number in set(kept):
        row, column = divmod(number, columns)
        box = (
            column * SIDE // columns,
            row * SIDE // rows,
            (column + 1) * SIDE // columns,
            (row + 1) * SIDE // rows,
        )
        white.paste(shown.crop(box), box)
    return white


def draw(
    question: str, image: Image.Image, full: Mapping[str, Any], reduced: Mapping[str, Any]
) -> Image.Image:
    """The panels side by side: full budget, then the layers from cut to cut."""
    facts = reduced["vtr"]
    trace = facts["trace"]
    grid = trace["images"][0]["grid"]
    every = range(grid[0] * grid[1])
    shown = [band for band in bands(trace["cuts"], len(facts["kept_per_layer"])) if band[2]]
    panels = [(f"all layers: {len(every)} tokens", list(every))] + [
        (
            f"layers {first} to {last}: {len(kept)}"
            if last > first
            else f"layer {first}: {len(kept)}",
            kept,
        )
        for first, last, kept in shown
    ]
    width = 2 * LEFT + len(panels) * SIDE + (len(panels) - 1) * GAP
    sheet = Image.new("RGB", (width, TOP + SIDE + BOTTOM), "white")
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    pen.text((LEFT, 14), question, fill=INK, font=large)
    for number, (name, kept) in enumerate(panels):
        x = LEFT + number * (SIDE + GAP)
        sheet.paste(faded(image, grid, kept), (x, TOP))
        pen.rectangle((x - 1, TOP - 1, x + SIDE, TOP + SIDE), outline=LINE)
        pen.text((x, TOP + SIDE + 6), name, fill=PALE, font=small)
    y = TOP + SIDE + 28
    pen.text((LEFT, y), f"budget 1.0: {said(full)}", fill=INK, font=large)
    cost = f"{facts['flops_fraction']:.0%} of the prefill's FLOPs"
    pen.text(
        (LEFT + SIDE + GAP, y),
        f"budget {facts['budget']:g}: {said(reduced)}   ({cost})",
        fill=INK,
        font=large,
    )
    return sheet


def said(answer: Mapping[str, Any]) -> str:
    """The text of an answer."""
    text: str = answer["choices"][0]["message"]["content"]
    return text.strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/assets/reduction.png"))
    parser.add_argument("--number", type=int, default=0, help="which of the held-out questions")
    parser.add_argument("--budget", type=float, default=0.25)
    options = parser.parse_args(arguments)
    asked = sample("test", options.number)
    flags = ("--schedules", str(CHECKPOINT.with_name("schedules")), "--served-model-name", "demo")
    with (
        Served(CHECKPOINT, flags) as served,
        httpx.Client(base_url=served.url, timeout=120, trust_env=False) as http,
    ):
        full = ask(http, asked.image, asked.question, 1.0)
        reduced = ask(http, asked.image, asked.question, options.budget)
    draw(asked.question, asked.image, full, reduced).save(options.out, optimize=True)
    print(f"{options.out}: {said(full)} at 1.0, {said(reduced)} at {options.budget:g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
