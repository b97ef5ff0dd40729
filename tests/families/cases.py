"""The requests that every family is asked: text, one image, several, a video; full and reduced."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from tests.families.family import Family
from tests.vtr_vllm.engine.support import Case, words

V2 = os.environ.get("VTR_TEST_RUNNER") == "v2"
GRAIN = 14

Curve = dict[int, tuple[float, str]]
"""Keep rate and rank rule by the layer before which the cut lies."""

# In bands of two layers, as the tests set them, a cut before an odd layer lies inside a band.
CURVES: tuple[Curve, ...] = (
    {2: (0.5, "last"), 3: (0.2, "previous")},
    {0: (0.7, "saliency"), 3: (0.3, "last-norope"), 5: (0.0, "instruction")},
    {2: (0.6, "last-max"), 3: (0.35, "instruction-norope-max"), 5: (0.05, "last")},
    {0: (0.5, "random"), 4: (0.25, "instruction-max")},
    {1: (0.6, "saliency"), 2: (0.0, "last")},
    {2: (0.4, "instruction-norope"), 4: (0.2, "last-norope-max")},
    {3: (0.3, "instruction"), 4: (0.1, "random")},
    # Local: at the first layers of bands, by images alone. Images only: its frames are units of their own.
    {0: (0.6, "saliency"), 2: (0.3, "random"), 4: (0.1, "previous")},
)
LOCAL = len(CURVES) - 1


@dataclass(frozen=True)
class FamilyCase(Case):
    """A request that may also have videos, [frames, height, width, 3] each."""

    videos: tuple[np.ndarray, ...] = ()

    @property
    def prompt(self) -> dict[str, Any]:
        prompt = super().prompt
        if self.videos:
            data = prompt.setdefault("multi_modal_data", {})
            data["video"] = [(video, _metadata(len(video))) for video in self.videos]
            uuids = prompt.setdefault("multi_modal_uuids", {})
            uuids["video"] = [hashlib.sha256(video.tobytes()).hexdigest() for video in self.videos]
        return prompt


def _metadata(frames: int) -> dict[str, Any]:
    """What a loader of videos says: two frames a second, all of them here."""
    return {
        "fps": 2.0,
        "duration": frames / 2,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Coarse random blocks under noise; ``size`` is width and height."""
    rng = np.random.default_rng(seed)
    width, height = size
    blocks = rng.integers(0, 256, (-(-height // GRAIN), -(-width // GRAIN), 3))
    pixels = blocks.repeat(GRAIN, 0).repeat(GRAIN, 1)[:height, :width]
    pixels = pixels + rng.integers(-40, 41, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def requests(family: Family, seed: int) -> list[FamilyCase]:
    """With vision tokens, at full budget: an image behind a long text, three images, a video."""
    images = tuple(picture(size, seed + i) for i, size in enumerate(family.sizes))
    first, second, third = (words(seed + i, 10 * i + 5) for i in range(3))
    found = [
        FamilyCase(f"{words(seed, 70)}{family.image}{third}", images[:1]),
        FamilyCase(f"{first}{family.image}{second}{family.image}{family.image}{third}", images),
    ]
    if family.video:
        size = family.sizes[0]
        frames = [np.asarray(picture(size, seed + 10 + i)) for i in range(family.frames)]
        text = f"{first}{family.video}{second}{family.image}{third}"
        found.append(FamilyCase(text, images[2:], videos=(np.stack(frames),)))
    return found


def text_only(seed: int) -> FamilyCase:
    return FamilyCase(words(seed, 50))


def full_budget(family: Family, layers: int) -> list[FamilyCase]:
    """Text and vision, each without a schedule and with one that keeps everything."""
    kinds = [text_only(1), *requests(family, 2)]
    return [*kinds, *(replace(case, keep=(1.0,) * layers) for case in kinds)]


def reduced(family: Family, layers: int, number: int) -> Iterator[FamilyCase]:
    """Requests under curve ``number``, one after another with other words and images."""
    curve, keep, rate = CURVES[number], [], 1.0
    for layer in range(layers):
        rate = curve.get(layer, (rate, ""))[0]
        keep.append(rate)
    rules = tuple(rule for _, rule in curve.values())
    for seed in range(100 * number, 100 * number + 100, 10):
        kinds = requests(family, seed)
        kind = 1 if number == LOCAL else number % len(kinds)
        yield replace(kinds[kind], keep=tuple(keep), rules=rules)
