"""Every metric of ours, beside vLLM's on GET /metrics; docs/metrics.md describes each.

They live in prometheus_client's default registry, which vLLM serves. With several API servers vLLM
sets PROMETHEUS_MULTIPROC_DIR, and what is served is put together from all processes: counters and
histograms are summed, and each gauge says below how. So: no Info, no callback, labels only from
bounded sets, and what the engine knows once (workers, KV blocks) is told by one process only.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from vtr_server.operations.outcomes import Outcome
from vtr_server.policy.vtr_answer import Kind, kind_of
from vtr_server.policy.vtr_field import VTRAnswer
from vtr_vllm.errors import VTRError

__all__ = [
    "begin_keys",
    "observe_background",
    "observe_cached",
    "observe_draining",
    "observe_elastic",
    "observe_elastic_step",
    "observe_first_token",
    "observe_info",
    "observe_job_end",
    "observe_jobs",
    "observe_kv",
    "observe_outcome",
    "observe_prompt",
    "observe_ready",
    "observe_refusal",
    "observe_reload",
    "observe_schedule",
    "observe_vision_work",
    "observe_schedules",
    "observe_settings_reload",
    "observe_workers",
]

UNKNOWN = "-"
"""The label of what was never known: the tier of a request refused before it was read, no key."""

_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600)

_REQUESTS = Counter(
    "vtr_requests",
    "Requests that ended, by tier, by where the schedule came from, by outcome.",
    ["tier", "source", "outcome"],
)
_KEY_REQUESTS = Counter(
    "vtr_key_requests", "Requests that ended, by API key and by outcome.", ["key", "outcome"]
)
_SCHEDULES_ASKED = Counter(
    "vtr_schedule_requests",
    "Requests that the engine admitted, by the schedule that they ran with.",
    ["schedule"],
)
_REFUSALS = Counter(
    "vtr_refused_requests", "Requests that were refused, by the code of the error.", ["reason"]
)

_VISION_TOKENS = Counter("vtr_vision_tokens", "Vision tokens in the prompts that were admitted.")
_KEY_VISION_TOKENS = Counter(
    "vtr_key_vision_tokens",
    "Vision tokens in the prompts that were admitted, by API key: seen, and kept, mean over layers,"
    " as allowances count them.",
    ["key", "state"],
)
_KIND_VISION_TOKENS = Counter(
    "vtr_kind_vision_tokens",
    "Vision tokens by the kind of their schedule: seen, returning from an earlier prompt, cached.",
    ["kind", "state"],
)
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
    "Prefill FLOPs of the language model over those of no reduction, of prompts with vision.",
    buckets=_SHARES,
)

_ENGINE_FIRST_TOKEN_SECONDS = Histogram(
    "vtr_engine_first_token_seconds",
    "From the arrival of a request to the first token that the engine made for it, streamed or not.",
    ["tier"],
    buckets=_FIRST_TOKEN,
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

_JOBS = Gauge(
    "vtr_jobs", "Search jobs that wait or run now.", ["state"], multiprocess_mode="mostrecent"
)
_JOBS_FINISHED = Counter(
    "vtr_jobs_finished", "Search jobs that ended, by the state that they ended in.", ["state"]
)
_BACKGROUND_FAILURES = Counter(
    "vtr_background_failures",
    "Times that a task beside the requests failed and was started again.",
    ["task"],
)

_RELOADS = Counter(
    "vtr_schedule_reloads", "Times that the schedule folder was read again.", ["outcome"]
)
_SETTINGS_RELOADS = Counter(
    "vtr_settings_reloads", "Times that the settings file was read again.", ["outcome"]
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
_DRAINING = Gauge(
    "vtr_draining", "1 once the server takes nothing new.", multiprocess_mode="livemax"
)
_INFO = Gauge(
    "vtr_info",
    "Always 1; the labels say what is served.",
    ["version", "model", "fingerprint"],
    multiprocess_mode="max",
)


def observe_schedule(name: str, source: str) -> None:
    """Count one request whose first prompt the engine admitted, by its schedule."""
    stored = source in ("full", "searched")  # what clients can make up shares a label
    shared = source if source in ("inline", "interpolated", "family") else "form"
    _SCHEDULES_ASKED.labels(name if stored else shared).inc()


def observe_prompt(facts: VTRAnswer, key: str = UNKNOWN, returning: int = 0) -> None:
    """Count one prompt that was admitted; ``returning``: tokens seen before."""
    seen, kept = facts.vision_tokens, facts.kept_per_layer
    if not seen:
        return  # text alone has nothing to keep: it would hide what is done to images
    _VISION_TOKENS.inc(seen)
    _KIND_VISION_TOKENS.labels(kind_of(facts), "seen").inc(seen)
    _KIND_VISION_TOKENS.labels(kind_of(facts), "returning").inc(returning)
    _KEY_VISION_TOKENS.labels(key, "seen").inc(seen)
    _KEY_VISION_TOKENS.labels(key, "kept").inc(sum(kept) / len(kept))


def observe_vision_work(facts: VTRAnswer, bands: Sequence[int] = ()) -> None:
    """Count what the layers saw of one prompt; ``bands``: first layers."""
    seen, layers, kept = facts.vision_tokens, len(facts.kept_per_layer), sum(facts.kept_per_layer)
    if not seen:
        return
    _LAYER_TOKENS.inc(seen * layers)
    _LAYER_TOKENS_KEPT.inc(kept)
    for band, first_layer in enumerate(bands):
        _BAND_TOKENS.labels(str(band), "seen").inc(seen)
        _BAND_TOKENS.labels(str(band), "kept").inc(facts.kept_per_layer[first_layer])
    _MEAN_KEEP.observe(facts.mean_keep)
    _FLOPS.observe(facts.flops_fraction)


def observe_cached(tokens: int, kind: Kind) -> None:
    """Count the vision tokens of a request, which has ended, that came from the prefix cache."""
    _KIND_VISION_TOKENS.labels(kind, "cached").inc(tokens)


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
    _REQUESTS.labels(tier, source, outcome).inc()
    _KEY_REQUESTS.labels(key, outcome).inc()
    if seconds is not None and outcome == "ok":
        _REQUEST_SECONDS.labels(tier).observe(seconds)


def observe_first_token(seconds: float, tier: str, *, streamed: bool) -> None:
    """Note how long it took from a request's arrival to its first token."""
    _ENGINE_FIRST_TOKEN_SECONDS.labels(tier).observe(seconds)
    if streamed:
        _FIRST_TOKEN_SECONDS.labels(tier).observe(seconds)


def begin_keys(names: Iterable[str]) -> None:
    """From now on these API keys are known: their series exist, or a first event shows no rise."""
    for name in names:
        for outcome in get_args(Outcome):
            _KEY_REQUESTS.labels(name, outcome)
        for state in ("seen", "kept"):
            _KEY_VISION_TOKENS.labels(name, state)


def observe_background(task: str, *, failures: Literal[0, 1]) -> None:
    """A task beside the requests begins, or has failed and is started again."""
    _BACKGROUND_FAILURES.labels(task).inc(failures)


def observe_jobs(queued: int, running: int) -> None:
    """Search jobs that wait for a slot, and that are at work."""
    for state, count in (("queued", queued), ("running", running)):
        _JOBS.labels(state).set(count)


def observe_job_end(state: str) -> None:
    """A search job ended: ``done``, ``failed`` or ``cancelled``."""
    _JOBS_FINISHED.labels(state).inc()


def observe_refusal(err: VTRError) -> None:
    """Count one request that got one of our errors."""
    _REFUSALS.labels(err.code).inc()


def observe_reload(outcome: Literal["ok", "rejected"]) -> None:
    """The schedule folder was read again."""
    _RELOADS.labels(outcome).inc()


def observe_settings_reload(outcome: Literal["ok", "partial", "rejected"]) -> None:
    """The settings file was read again; partial: some of it waits for a restart."""
    _SETTINGS_RELOADS.labels(outcome).inc()


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


_told: dict[Counter, float] = {}
"""The workers' totals, as last told."""


def observe_workers(
    rank_seconds: float, gather_seconds: float, reduced_steps: int, uncompiled_layers: int
) -> None:
    """The workers' counts since their start. Of several API servers, one only may call this."""
    seconds = {_RANK_SECONDS: rank_seconds, _GATHER_SECONDS: gather_seconds}
    counts = {_REDUCED_STEPS: reduced_steps, _UNCOMPILED_LAYERS: uncompiled_layers}
    for counter, total in (seconds | counts).items():
        last = _told.get(counter, 0.0)
        counter.inc(total - last if total >= last else total)  # a smaller count is a new start
        _told[counter] = total


def observe_kv(total: int, free: int, held: int, saved: int) -> None:
    """KV cache blocks, as the scheduler counts them."""
    for state, blocks in (("total", total), ("free", free), ("held", held), ("saved", saved)):
        _KV_BLOCKS.labels(state).set(blocks)


observe_ready = _READY.set
"""Whether the engine lives with reduction in place."""


def observe_draining() -> None:
    """From now on nothing new is taken."""
    _DRAINING.set(1)


def observe_info(version: str, model: str, fingerprint: str) -> None:
    """What is served; told once, at start."""
    _INFO.labels(version, model, fingerprint).set(1)


def _codes(error: type[VTRError]) -> Iterator[str]:
    yield error.code
    for child in error.__subclasses__():
        yield from _codes(child)


def _begin_at_zero() -> None:
    """Series whose labels are known exist from the start, or their first event shows no rise."""
    for code in sorted(set(_codes(VTRError))):
        _REFUSALS.labels(code)
    known: dict[Counter | Gauge, tuple[str, ...]] = {
        _RELOADS: ("ok", "rejected"),
        _SETTINGS_RELOADS: ("ok", "partial", "rejected"),
        _ELASTIC_STEPS: ("up", "down"),
        _JOBS_FINISHED: ("done", "failed", "cancelled"),
        _JOBS: ("queued", "running"),
    }
    for metric, labels in known.items():
        for label in labels:
            metric.labels(label)
    for kind, state in product(get_args(Kind), ("seen", "returning", "cached")):
        _KIND_VISION_TOKENS.labels(kind, state)
    begin_keys([UNKNOWN])


_begin_at_zero()
