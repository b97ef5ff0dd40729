"""What is evaluated: keep rates with their rank rules, and what happens to the image before."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image, ImageStat

from vtr_vllm.errors import ScheduleError
from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule, make_plan
from vtr_vllm.schedules.keep_rates import check_keep_and_rules


@dataclass(frozen=True)
class Candidate:
    """One way to answer a question about an image; raises ScheduleError when malformed.

    ``keep`` and ``rules`` are those of a Schedule. ``image_scale``, in (0, 1], is the share of its
    canvas that the image is shrunk to, see ``scaled``: the down-sampled image, as a baseline.
    """

    keep: tuple[float, ...]
    rules: tuple[RankRule, ...] = ()
    image_scale: float = 1.0

    def __post_init__(self) -> None:
        keep, rules = check_keep_and_rules(self.keep, self.rules, len(self.keep))
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "rules", rules)
        if not 0 < self.image_scale <= 1:
            raise ScheduleError(f"image_scale is {self.image_scale}; it must be in (0, 1]")

    @classmethod
    def of(cls, schedule: Schedule, n_vision: int | None = None) -> Self:
        """What a schedule comes to for prompts of ``n_vision`` vision tokens; None: any prompt.

        With a number, schedules of equal counts become equal candidates, which are evaluated
        once. A per-image floor is left out: the search has none, and with one image it changes
        nothing.
        """
        if n_vision is None:
            return cls(schedule.keep, schedule.rules)
        plan = make_plan(schedule.keep, schedule.rules, n_vision)
        return cls(tuple(count / n_vision for count in plan.counts), plan.rules)

    @classmethod
    def from_counts(cls, counts: Sequence[int], rules: Sequence[RankRule], n_vision: int) -> Self:
        """From kept tokens per layer, one rule per layer from the first cut's on (unused kept out).

        ``rules`` has one rule per layer; those of layers where the count falls are used.
        """
        before = [n_vision, *counts[:-1]]
        used = [r for r, now, last in zip(rules, counts, before, strict=True) if now < last]
        return cls(tuple(count / n_vision for count in counts), tuple(used))

    @property
    def reduces(self) -> bool:
        """Whether any layer sees fewer than all vision tokens."""
        return self.keep[-1] < 1.0

    @property
    def key(self) -> str:
        """A stable short name: the same for the same candidate in every run."""
        text = json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def vtr_field(self) -> dict[str, list[float] | list[str]]:
        """``vtr`` of a request's body to a server; empty without reduction."""
        if not self.reduces:
            return {}
        return {"keep": list(self.keep), "rules": [str(rule) for rule in self.rules]}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "keep": list(self.keep),
            "rules": [str(rule) for rule in self.rules],
            "image_scale": self.image_scale,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of ``to_dict``."""
        rules = tuple(RankRule.parse(rule) for rule in values["rules"])
        return cls(tuple(values["keep"]), rules, values["image_scale"])


def unreduced(geometry: ModelGeometry) -> Candidate:
    """The candidate that every other is measured against."""
    return Candidate((1.0,) * geometry.layers)


def scaled(image: Image.Image, scale: float) -> Image.Image:
    """The image shrunk to ``scale`` of its area, in the corner of a canvas of its old size.

    So a model of fixed resolution spends that share of its vision tokens on the image; the others
    show the canvas, in the image's median colour, and can be dropped. At 1 the image itself.
    """
    if scale == 1.0:
        return image
    side = scale**0.5
    size = (max(1, round(image.width * side)), max(1, round(image.height * side)))
    canvas = Image.new("RGB", image.size, tuple(ImageStat.Stat(image).median))
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS))
    return canvas
