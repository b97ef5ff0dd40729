"""Every metric of ours, beside vLLM's on GET /metrics; docs/metrics.md describes each.

They live in prometheus_client's default registry, which vLLM serves. With several API servers vLLM
sets PROMETHEUS_MULTIPROC_DIR, and what is served is put together from all processes: counters and
histograms are summed, and each gauge says below how. So: no Info, no callback, labels only from
bounded sets, and what the engine knows once (workers, KV blocks) is told by one process only.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

from vtr_server.policy.vtr_field import VTRAnswer
from vtr_vllm.errors import VTRError

__all__ = [
    "Outcome",
    "observe_answer",
    "observe_elastic",
    "observe_elastic_step",
    "observe_first_token",
    "observe_in_flight",
    "observe_info",
    "observe_kv",
    "observe_outcome",
    "observe_ready",
    "observe_refusal",
    "observe_reload",
    "observe_schedules",
    "observe_workers",
    "tier_label",
]

Outcome = Literal["ok", "client_error", "refused", "aborted", "error", "timeout"]

UNKNOWN = "-"
"""The label of what was never known: the tier of a request refused before it was read, no key."""

_BANDS = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Upper ends, for budgets of no tier; the budgets that people use have a label of their own."""

_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600)

_REQUESTS = Counter(
    "vtr_requests",
    "Requests that ended, by tier, by where the schedule came from, by API key, by outcome.",
    ["tier", "source", "key", "outcome"],
)
_SCHEDULES_ASKED = Counter(
    "vtr_schedule_requests",
    "Requests that the engine admitted, by the schedule that they ran with.",
    ["schedule"],
)
_REFUSALS = Counter(
    "vtr_refused_requests", "Requests that were refused, by the code of the error.", ["reason"]
)
_IN_FLIGHT = Gauge(
    "vtr_in_flight_requests",
    "Requests inside the server now, waiting in the engine or running.",
    multiprocess_mode="livesum",
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
_BAND_TOKENS = Counter(
    "vtr_band_vision_tokens",
    "Vision tokens at the first layer of each KV band: seen in the prompt, and kept there.",
    ["band", "state"],
)
_MEAN_KEEP = Histogram(
    "vtr_mean_keep", "Share of the vision tokens kept, mean over layers.", buckets=_SHARES
)
_FLOPS = Histogram(
    "vtr_flops_fraction",
    "Prefill FLOPs of the language model over those of no reduction, of requests with vision.",
    buckets=_SHARES,
)

_FIRST_TOKEN_SECONDS = Histogram(
    "vtr_time_to_first_token_seconds",
    "From the arrival of a request to its first token; of streamed answers.",
    ["tier"],
    buckets=_FIRST_TOKEN,
)
_REQUEST_SECONDS = Histogram(
    "vtr_request_seconds",
    "From the arrival of a request to its end; of requests with outcome ok.",
    ["tier"],
    buckets=_REQUEST,
)

_KV_BLOCKS = Gauge(
    "vtr_kv_blocks",
    "KV cache blocks: in all, free, held by live requests, and saved: what those would hold beyond"
    " that at full budget.",
    ["state"],
    multiprocess_mode="mostrecent",
)
_RANK_SECONDS = Counter("vtr_rank_seconds", "Time that the workers spent ranking vision tokens.")
_GATHER_SECONDS = Counter(
    "vtr_gather_seconds", "Time that the workers spent dropping rows at cuts and restoring them."
)
_REDUCED_STEPS = Counter("vtr_reduced_steps", "Steps of the workers that reduced a request.")
_UNCOMPILED_LAYERS = Counter(
    "vtr_uncompiled_layers", "Runs of decoder layers that no graph compiled at start fitted."
)

_ELASTIC_STEPS = Counter(
    "vtr_elastic_steps", "Steps of the elastic controller between its levels.", ["direction"]
)
_ELASTIC_LEVEL = Gauge(
    "vtr_elastic_level",
    "Budget that the elastic controller gives to requests of budget auto; 0 while it is off.",
    multiprocess_mode="mostrecent",
)
_ELASTIC_PREDICTED = Gauge(
    "vtr_elastic_predicted_ttft_seconds",
    "Time to first token that the elastic controller expects at its level; NaN while it cannot tell.",
    multiprocess_mode="mostrecent",
)
_ELASTIC_OBJECTIVE = Gauge(
    "vtr_elastic_objective_seconds",
    "Time to first token that the elastic controller holds; 0 while it is off.",
    multiprocess_mode="mostrecent",
)
_ELASTIC_BACKLOG = Gauge(
    "vtr_elastic_backlog_token_layers",
    "Prefill work that waits, in tokens times layers, as the elastic controller last saw it.",
    multiprocess_mode="mostrecent",
)

_RELOADS = Counter(
    "vtr_schedule_reloads", "Times that the schedule folder was read again.", ["outcome"]
)
_SCHEDULES = Gauge(
    "vtr_schedules", "Schedules stored, full among them.", multiprocess_mode="mostrecent"
)
_LOADED = Gauge(
    "vtr_schedules_loaded_timestamp_seconds",
    "When the schedules in use were loaded, in seconds since 1970.",
    multiprocess_mode="mostrecent",
)
_READY = Gauge(
    "vtr_ready",
    "1 while the engine lives with reduction in place, as last asked.",
    multiprocess_mode="mostrecent",
)
_INFO = Gauge(
    "vtr_info",
    "Always 1; the labels say what is served.",
    ["version", "model", "fingerprint"],
    multiprocess_mode="max",
)


def tier_label(budget: float, schedule: str, tiers: Mapping[str, float | str]) -> str:
    """The tier that stands for this budget or for this schedule, else the budget's upper end.

    An upper end because a mean keep rate, of a vtw or G-Search schedule say, lies anywhere.
    """
    for name, meaning in tiers.items():
        if meaning == schedule if isinstance(meaning, str) else abs(meaning - budget) < 1e-9:
            return name
    return str(next(end for end in _BANDS if budget <= end + 1e-9))


def observe_answer(facts: VTRAnswer, bands: Sequence[int] = ()) -> None:
    """Count what one request that the engine admitted came to; ``bands`` are their first layers."""
    _SCHEDULES_ASKED.labels(_schedule_label(facts)).inc()
    _VISION_TOKENS.inc(facts.vision_tokens)
    _LAYER_TOKENS.inc(facts.vision_tokens * len(facts.kept_per_layer))
    _LAYER_TOKENS_KEPT.inc(sum(facts.kept_per_layer))
    if not facts.vision_tokens:
        return  # text alone has nothing to keep: it would hide what is done to images
    for band, first_layer in enumerate(bands):
        _BAND_TOKENS.labels(str(band), "seen").inc(facts.vision_tokens)
        _BAND_TOKENS.labels(str(band), "kept").inc(facts.kept_per_layer[first_layer])
    _MEAN_KEEP.observe(facts.mean_keep)
    _FLOPS.observe(facts.flops_fraction)


def observe_outcome(
    outcome: Outcome,
    *,
    tier: str = UNKNOWN,
    source: str = UNKNOWN,
    key: str = UNKNOWN,
    seconds: float | None = None,
) -> None:
    """Count one request at its end.

    ``tier`` comes from ``tier_label`` and ``source`` from the facts; ``key`` is the name of a key
    of the settings. ``seconds``, since the request arrived, counts where the outcome is ok.
    """
    _REQUESTS.labels(tier, source, key, outcome).inc()
    if seconds is not None and outcome == "ok":
        _REQUEST_SECONDS.labels(tier).observe(seconds)


def observe_first_token(seconds: float, tier: str) -> None:
    """Note how long a request waited for its first token."""
    _FIRST_TOKEN_SECONDS.labels(tier).observe(seconds)


def observe_refusal(err: VTRError) -> None:
    """Count one request that got one of our errors."""
    _REFUSALS.labels(err.code).inc()


def observe_in_flight(change: Literal[1, -1]) -> None:
    """A request came in, or is done with, however it ended."""
    _IN_FLIGHT.inc(change)


def observe_reload(outcome: Literal["ok", "rejected"]) -> None:
    """The schedule folder was read again."""
    _RELOADS.labels(outcome).inc()


def observe_schedules(count: int) -> None:
    """From now on ``count`` schedules are offered by name; told at the start too."""
    _SCHEDULES.set(count)
    _LOADED.set(time.time())


def observe_elastic(level: float, predicted: float, backlog: float, objective: float) -> None:
    """The controller's state after a decision: budget, seconds, token-layers, seconds.

    ``predicted`` is NaN while it cannot tell.
    """
    _ELASTIC_LEVEL.set(level)
    _ELASTIC_PREDICTED.set(predicted)
    _ELASTIC_BACKLOG.set(backlog)
    _ELASTIC_OBJECTIVE.set(objective)


def observe_elastic_step(direction: Literal["up", "down"]) -> None:
    """The controller went to the next level; up is a larger budget."""
    _ELASTIC_STEPS.labels(direction).inc()


class _Growth:
    """How much a count since some process's start has grown; a smaller count is a new start."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, total: float) -> float:
        grown = total - self._last if total >= self._last else total
        self._last = total
        return grown


_rank, _gather, _steps, _uncompiled = _Growth(), _Growth(), _Growth(), _Growth()


def observe_workers(
    rank_seconds: float, gather_seconds: float, reduced_steps: int, uncompiled_layers: int
) -> None:
    """The workers' counts since their start. Of several API servers, one only may call this."""
    _RANK_SECONDS.inc(_rank(rank_seconds))
    _GATHER_SECONDS.inc(_gather(gather_seconds))
    _REDUCED_STEPS.inc(_steps(reduced_steps))
    _UNCOMPILED_LAYERS.inc(_uncompiled(uncompiled_layers))


def observe_kv(total: int, free: int, held: int, saved: int) -> None:
    """KV cache blocks, as the scheduler counts them."""
    for state, blocks in (("total", total), ("free", free), ("held", held), ("saved", saved)):
        _KV_BLOCKS.labels(state).set(blocks)


def observe_ready(ready: bool) -> None:
    """Whether the engine lives with reduction in place."""
    _READY.set(ready)


def observe_info(version: str, model: str, fingerprint: str) -> None:
    """What is served; told once, at start."""
    _INFO.labels(version, model, fingerprint).set(1)


def _schedule_label(facts: VTRAnswer) -> str:
    """A stored name; what clients can make up shares a label."""
    if facts.source in ("full", "searched"):
        return facts.schedule
    return facts.source if facts.source in ("inline", "interpolated") else "form"


def _codes(error: type[VTRError]) -> Iterator[str]:
    yield error.code
    for child in error.__subclasses__():
        yield from _codes(child)


def _begin_at_zero() -> None:
    """Series whose labels are known exist from the start, or their first event shows no rise."""
    for code in sorted(set(_codes(VTRError))):
        _REFUSALS.labels(code)
    for outcome in ("ok", "rejected"):
        _RELOADS.labels(outcome)
    for direction in ("up", "down"):
        _ELASTIC_STEPS.labels(direction)


_begin_at_zero()
