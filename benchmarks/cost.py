"""The speed-up that FLOPs alone would give, to hold measurements against."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.shapes import Shape
from vtr_vllm.schedules import Schedule, prefill_flops


@dataclass(frozen=True)
class Prediction:
    """Prefill FLOPs of one request, multiply-adds, and what dropping tokens makes of them."""

    decoder_full: int
    decoder_reduced: int
    tower: int

    @property
    def tower_share(self) -> float:
        """The tower's share of an unreduced prefill."""
        return self.tower / (self.tower + self.decoder_full)

    @property
    def decoder_ratio(self) -> float:
        """Unreduced over reduced FLOPs of the decoder alone."""
        return self.decoder_full / self.decoder_reduced

    @property
    def ratio(self) -> float:
        """Unreduced over reduced FLOPs with the tower, which no schedule makes cheaper."""
        return (self.decoder_full + self.tower) / (self.decoder_reduced + self.tower)


def predict(shape: Shape, schedule: Schedule, n_text: int) -> Prediction:
    """Return the cost of one request of ``shape`` with ``n_text`` text tokens."""
    n, geometry = shape.vision_tokens, shape.geometry
    return Prediction(
        decoder_full=prefill_flops(geometry, [n] * geometry.layers, n_text),
        decoder_reduced=prefill_flops(geometry, schedule.counts(n), n_text),
        tower=shape.tower_flops,
    )
