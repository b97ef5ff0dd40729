"""Metrics of the choice among a family's schedules: what it took, and whether traffic is like calibration.

As in ``metrics``: labels only from bounded sets, and everything adds up over API server processes.
"""

from prometheus_client import Counter

from vtr_server.policy.vtr_field import VTRAnswer

__all__ = ["observe_adaptive"]

_PROMPTS = Counter(
    "vtr_adaptive_prompts",
    "Prompts whose schedule was chosen for them, by the name of that schedule.",
    ["schedule"],
)
_PROMISED = Counter(
    "vtr_adaptive_keep_promised",
    "Sum over these prompts of the mean keep rate that calibration came to at their budget.",
)
_SPENT = Counter(
    "vtr_adaptive_keep_spent",
    "Sum over these prompts of the mean keep rate that they ran with; over keep_promised, how the"
    " promise is kept.",
)
_PREDICTED = Counter(
    "vtr_adaptive_right_predicted",
    "Sum over these prompts of the predicted probability of a right answer.",
)
_EXPECTED = Counter(
    "vtr_adaptive_right_expected",
    "Sum over these prompts of that probability's mean over calibration, at their budget; where"
    " right_predicted leaves it, traffic has drifted from calibration.",
)


def observe_adaptive(known: VTRAnswer) -> None:
    """Count one prompt with vision tokens that was admitted and got a schedule of its own."""
    if known.adaptive is None or not known.vision_tokens:
        return
    _PROMPTS.labels(known.schedule).inc()
    _PROMISED.inc(known.adaptive.promised)
    _SPENT.inc(known.mean_keep)
    _PREDICTED.inc(known.adaptive.probability)
    _EXPECTED.inc(known.adaptive.expected)
