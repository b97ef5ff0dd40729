"""Asking a real server through the page, and reading what it shows."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Page, expect

from vtr_vllm.demo import Sample

PATCHES = 12  # per side of an image of the demo world

# Patches in whose middle a canvas shows the image as it is: neither dimmed nor outlined.
UNCHANGED = """(number) => {
  const canvas = document.querySelectorAll("#views canvas")[number];
  const pens = [canvas, document.querySelectorAll("#thumbs img")[number]].map((drawn) => {
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [canvas.width, canvas.height];
    const pen = copy.getContext("2d", { willReadFrequently: true });
    pen.imageSmoothingEnabled = false;
    pen.drawImage(drawn, 0, 0, copy.width, copy.height);
    return pen;
  });
  const found = [];
  for (let patch = 0; patch < 144; patch += 1) {
    const x = Math.round(((patch % 12) + 0.5) * canvas.width / 12) - 8;
    const y = Math.round((Math.floor(patch / 12) + 0.5) * canvas.height / 12) - 8;
    const [a, b] = pens.map((pen) => pen.getImageData(x, y, 16, 16).data.join());
    if (a === b) found.push(patch);
  }
  return found;
}"""

# Keeps a copy of every answer while the page reads it as it streams.
LISTEN = """() => {
  const real = window.unheard ??= window.fetch;
  window.heard = [];
  window.fetch = async (...given) => {
    const answer = await real(...given);
    window.heard.push(answer.clone().text());
    return answer;
  };
}"""


@dataclass(frozen=True)
class Told:
    """One streamed answer, as it came over the wire."""

    text: str
    facts: dict[str, Any]

    def kept_at(self, layer: int) -> set[int]:
        """Vision tokens that a layer still sees, by the trace."""
        kept = set(range(self.facts["vision_tokens"]))
        for cut in self.facts["trace"]["cuts"]:
            if cut["layer"] <= layer:
                kept = set(cut["kept"])
        return kept


def png(drawn: Sample) -> bytes:
    out = io.BytesIO()
    drawn.image.save(out, "PNG")
    return out.getvalue()


def upload(page: Page, *bodies: bytes) -> None:
    files: Any = [{"name": "drawn.png", "mimeType": "image/png", "buffer": body} for body in bodies]
    page.locator("#files").set_input_files(files)
    expect(page.locator("#thumbs img")).to_have_count(len(bodies))


def ask(page: Page, button: str = "Ask") -> list[Told]:
    """Press a button that asks, and wait for both answers: at full budget, and at the chosen one."""
    page.evaluate(LISTEN)
    page.get_by_role("button", name=button, exact=True).press("Enter")
    # Both were sent: what the page says of its progress is no longer of an earlier question.
    end = time.monotonic() + 60
    while page.evaluate("window.heard.length") < 2 and time.monotonic() < end:
        page.wait_for_timeout(50)
    expect(page.locator("#progress")).to_contain_text("Done")
    answers = page.evaluate("Promise.all(window.heard)")
    assert len(answers) == 2
    return [told(answer) for answer in answers]


def told(stream: str) -> Told:
    """The answer of a stream of server-sent events."""
    lines = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return Told(text.strip(), chunks[-1]["vtr"])


def numbers(page: Page) -> dict[str, list[str]]:
    """The table: row -> cells of the full and of the chosen budget."""
    rows = page.locator("#numbers tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts()[:2] for row in rows}
