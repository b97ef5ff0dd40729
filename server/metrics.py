"""Every metric of ours, beside vLLM's on GET /metrics.

They live in prometheus_client's default registry, which vLLM serves; with several API servers
vLLM sets PROMETHEUS_MULTIPROC_DIR and counters are summed over the processes. So: counters only,
and labels only from fixed sets.
"""

from prometheus_client import Counter

from server.protocol import Facts
from vtr_vllm.errors import VTRError

__all__ = ["observe_answer", "observe_refusal"]

_TIERS = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Upper ends. The budgets that people use have a label of their own name."""

_REQUESTS = Counter(
    "vtr_requests",
    "Requests that the engine admitted, by the budget asked for (its tier's upper end) and by"
    " where the schedule comes from.",
    ["budget", "source"],
)
_VISION_TOKENS = Counter("vtr_vision_tokens", "Vision tokens in the prompts of admitted requests.")
_LAYER_TOKENS = Counter(
    "vtr_vision_token_layers",
    "Vision tokens times decoder layers: the vision work that no reduction would have done.",
)
_LAYER_TOKENS_KEPT = Counter(
    "vtr_vision_token_layers_kept",
    "Vision tokens that each decoder layer saw, summed over the layers: the vision work done.",
)
_REFUSALS = Counter(
    "vtr_refused_requests", "Requests that were refused, by the code of the error.", ["reason"]
)


def observe_answer(facts: Facts) -> None:
    """Count one request that was served."""
    _REQUESTS.labels(_tier(facts.budget), facts.source.replace(" ", "-")).inc()
    _VISION_TOKENS.inc(facts.vision_tokens)
    _LAYER_TOKENS.inc(facts.vision_tokens * len(facts.kept_per_layer))
    _LAYER_TOKENS_KEPT.inc(sum(facts.kept_per_layer))


def observe_refusal(err: VTRError) -> None:
    """Count one request that got one of our errors."""
    _REFUSALS.labels(err.code).inc()


def _tier(budget: float) -> str:
    """The upper end of the tier that a budget lies in; a vtw or G-Search mean lies between."""
    return str(next(end for end in _TIERS if budget <= end + 1e-9))
