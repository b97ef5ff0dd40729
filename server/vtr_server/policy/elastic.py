"""Budget ``auto``: the server chooses, within bounds, so that first tokens come in time.

``Controller`` is the algorithm: signals in, a level out, no clock of its own. ``Backlog`` knows
what is admitted and still without a first token. ``Elastic`` joins them to the running server.
Work is counted in token-layers: tokens times the decoder layers that see them. With several API
servers each controls for itself, over the requests that came through it.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from vtr_server.policy.settings import ElasticSettings

__all__ = ["Backlog", "Controller", "Elastic", "Load", "Signals", "Work", "within"]

logger = logging.getLogger("vllm.vtr")

Clock = Callable[[], float]

# Shares of the objective.
HIGH_WATER = 0.85
"""Step down when a first token is predicted, or seen, to take more."""
LOW_WATER = 0.75
"""Step up only when less is predicted for the level above."""
KV_CRITICAL = 0.95
KV_CALM = 0.85

# In objectives: a server with tight objectives also sees more requests a second.
HOLD = 4.0
"""How long the level above must look good before it is taken."""
MEMORY = 10.0
"""Half-life of the rates, and age at which a first token is no longer recent."""

REQUESTS_REMEMBERED = 20.0
"""Half-life of what a request costs, in requests."""
ENOUGH_TTFTS = 20
"""A 95th percentile of fewer would be their maximum."""


def within(levels: Sequence[float], level: float, minimum: float, maximum: float) -> float:
    """The one of ``levels`` nearest to ``level`` in [minimum, maximum]; the nearer bound if none.

    ``level`` itself is one of ``levels``.
    """
    inside = [each for each in levels if minimum <= each <= maximum]
    if inside:
        return min(inside, key=lambda each: abs(each - level))
    return min(max(level, minimum), maximum)


@dataclass(frozen=True)
class Work:
    """What prefilling one prompt takes, in token-layers."""

    text: float
    """Text tokens times layers: spent at every budget."""
    kept: float
    """Vision tokens that each layer sees, summed over the layers, as the request was admitted."""
    vision: float = 0.0
    """Vision tokens times layers, where the controller chose the budget; else 0."""
    minimum: float = 0.0
    maximum: float = 1.0
    """Bounds of the request, where the controller chose."""

    @property
    def spent(self) -> float:
        """Work as admitted."""
        return self.text + self.kept

    def at(self, levels: Sequence[float], level: float) -> float:
        """Work of the same request, had it come at ``level``; one that fixed its budget: as is."""
        if not self.vision:
            return self.spent
        return self.text + self.vision * within(levels, level, self.minimum, self.maximum)


@dataclass(frozen=True)
class Signals:
    """What the controller is told of one interval."""

    waiting: int = 0
    """Requests that the scheduler has not begun."""
    running: int = 0
    backlog: float = 0.0
    """Token-layers admitted and without a first token."""
    arrived: Sequence[Work] = ()
    """Requests admitted in the interval."""
    finished: float = 0.0
    """Token-layers whose first token came in the interval."""
    busy_seconds: float = 0.0
    """What they took: time with a backlog up to the last of these first tokens."""
    kv_usage: float = 0.0
    """Share of the KV blocks in use, 0..1."""
    ttfts: Sequence[tuple[float, float]] = ()
    """First tokens of the interval: when (on the controller's clock) and after how many seconds."""


class _Ratio:
    """A sum over a sum, both halved whenever ``half_life`` of the second went by."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._top = self._bottom = 0.0

    def add(self, amount: float, over: float) -> None:
        keep = 0.5 ** (over / self._half_life)
        self._top = self._top * keep + amount
        self._bottom = self._bottom * keep + over

    @property
    def value(self) -> float | None:
        return self._top / self._bottom if self._bottom > 0 else None


class Controller:
    """Steps through the levels; pure but for ``clock``, which returns seconds.

    Call ``observe`` and then ``decide`` once an interval.
    """

    def __init__(self, settings: ElasticSettings, clock: Clock = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._hold = HOLD * settings.ttft_seconds
        self._index = 0
        self._now = Signals()
        memory = MEMORY * settings.ttft_seconds
        self._rate = _Ratio(memory)
        self._arrivals = _Ratio(memory)
        self._costs = [_Ratio(REQUESTS_REMEMBERED) for _ in settings.levels]
        self._ttfts: deque[tuple[float, float]] = deque(maxlen=512)  # arrival, seconds
        self._observed = self._stepped = self._uneasy = self._active = clock()
        self.reason = "start"
        """Of the last step."""

    @property
    def level(self) -> float:
        """The budget of a request that leaves it open."""
        return self._settings.levels[self._index]

    @property
    def backlog(self) -> float:
        """Token-layers, as last observed."""
        return self._now.backlog

    @property
    def predicted_ttft(self) -> float | None:
        """Seconds, for a request that arrives now; None until the first work was finished."""
        return self.predicted(self._index)

    def observe(self, signals: Signals) -> None:
        """Take in what the interval since the last call saw."""
        now = self._clock()
        self._now = signals
        levels = self._settings.levels
        self._arrivals.add(len(signals.arrived), now - self._observed)
        for work in signals.arrived:
            for level, cost in zip(levels, self._costs, strict=True):
                cost.add(work.at(levels, level), 1.0)
        if signals.finished > 0:
            self._rate.add(signals.finished, signals.busy_seconds)
        self._ttfts.extend((when - seconds, seconds) for when, seconds in signals.ttfts)
        if signals.arrived or signals.backlog or signals.waiting or signals.running:
            self._active = now
        self._observed = now

    def decide(self) -> float:
        """Take at most one step; returns the level, always one of the settings'."""
        now = self._clock()
        last = len(self._settings.levels) - 1
        if now - self._active >= self._hold:
            if self._index > 0:  # what is known is old: start anew at the top
                self._step(now, -1, "idle")
        elif breach := self._breach(now):
            self._uneasy = now
            if self._index < last:
                self._step(now, +1, breach)
        elif self._index > 0 and self._is_calm_above(now):
            self._step(now, -1, "calm")
        return self.level

    def predicted(self, index: int) -> float | None:
        """Seconds to the first token of a request that arrives now at level number ``index``.

        It waits for the backlog as it is, then for its own work.
        """
        rate, cost = self._rate.value, self._costs[index].value
        return None if not rate else (self._now.backlog + (cost or 0.0)) / rate

    def sustained(self, index: int) -> float | None:
        """95th percentile of the time to first token if all requests went on coming at a level.

        The queue M/D/1, whose waiting time W has P(W > t) = u exp(-2 (1 - u) t / s) in heavy
        traffic (Kingman), for utilisation u and service time s. None until something is known.
        """
        rate, cost, arrivals = self._rate.value, self._costs[index].value, self._arrivals.value
        if not rate or not cost or arrivals is None:
            return None
        service = cost / rate
        use = arrivals * service
        if use >= 1:
            return math.inf
        if use <= 0.05:
            return service  # 95 of 100 find nobody in front of them
        return service * (1 + math.log(20 * use) / (2 * (1 - use)))

    def recent_p95(self, now: float) -> float | None:
        """Of the requests that arrived since the last step, and not long ago; None of too few."""
        since = max(self._stepped, now - MEMORY * self._settings.ttft_seconds)
        seen = sorted(seconds for arrival, seconds in self._ttfts if arrival >= since)
        return seen[math.ceil(0.95 * len(seen)) - 1] if len(seen) >= ENOUGH_TTFTS else None

    def _breach(self, now: float) -> str | None:
        """Why to step down."""
        limit = HIGH_WATER * self._settings.ttft_seconds
        if self._now.kv_usage >= KV_CRITICAL:
            return "kv"
        if (self.predicted(self._index) or 0.0) > limit:
            return "prediction"
        return "p95" if (self.recent_p95(now) or 0.0) > limit else None

    def _is_calm_above(self, now: float) -> bool:
        """Whether the next higher level has looked good for long enough."""
        limit = LOW_WATER * self._settings.ttft_seconds
        above = (self.predicted(self._index - 1), self.sustained(self._index - 1))
        seen = self.recent_p95(now)
        if self._now.kv_usage >= KV_CALM or any((each or 0.0) > limit for each in (*above, seen)):
            self._uneasy = now
        return now - max(self._uneasy, self._stepped) >= self._hold

    def _step(self, now: float, direction: int, reason: str) -> None:
        self._index += direction
        self._stepped, self.reason = now, reason


class Backlog:
    """Requests that are admitted and have no first token yet, and what became of the others."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, tuple[float, float]] = {}  # admitted when, work; oldest first
        self._arrived: list[Work] = []
        self._finished = self._busy = 0.0
        self._since = -math.inf  # busy time before it is accounted for
        self._unclaimed = 0

    def admitted(self, request_id: str, work: Work) -> None:
        """One prompt is on its way to the engine."""
        self._open[request_id] = self._clock(), work.spent
        self._arrived.append(work)

    def first_token(self, request_id: str) -> None:
        """Its first token was seen; later calls do nothing."""
        if request_id in self._open:
            self._unclaimed -= 1
            self._finish(request_id, self._clock())

    def done(self, request_id: str, completed: bool) -> None:
        """It has ended; one that was not ``completed`` leaves its work undone."""
        if completed:
            self.first_token(request_id)
        else:
            self._open.pop(request_id, None)

    def settle(self, first_tokens: Sequence[float], waiting: int) -> None:
        """Match the first tokens that the engine reports (their times) to requests.

        vLLM hands out an answer that is not streamed when it is whole, so nobody calls
        ``first_token`` in time. The scheduler takes requests in the order they came, so first
        tokens that were not claimed by id are those of the oldest; and never of the last
        ``waiting`` requests, which it has not begun.
        """
        self._unclaimed += len(first_tokens)
        for when in first_tokens:
            if self._unclaimed > 0 and len(self._open) > waiting:
                self._unclaimed -= 1
                self._finish(next(iter(self._open)), when)
        if not self._open:
            self._unclaimed = 0  # first tokens of requests that never were ours

    def signals(self, load: "Load", ttfts: Sequence[tuple[float, float]]) -> Signals:
        """Everything since the last call."""
        found = Signals(
            waiting=load.waiting,
            running=load.running,
            backlog=sum(spent for _, spent in self._open.values()),
            arrived=self._arrived,
            finished=self._finished,
            busy_seconds=self._busy,
            kv_usage=load.kv_usage,
            ttfts=ttfts,
        )
        self._arrived = []
        self._finished = self._busy = 0.0
        return found

    def _finish(self, request_id: str, when: float) -> None:
        oldest, _ = next(iter(self._open.values()))
        self._finished += self._open.pop(request_id)[1]
        self._busy += max(0.0, when - max(oldest, self._since))
        self._since = max(when, self._since)


class Load(Protocol):
    """What the engine's statistics say; ``vtr_vllm.engine.frontend.load_logger.LOAD``."""

    @property
    def waiting(self) -> int:
        """Requests in the scheduler's queue."""

    @property
    def running(self) -> int:
        """Requests that it has begun."""

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use, 0..1."""

    @property
    def first_tokens(self) -> Iterable[tuple[float, float]]:
        """The latest first tokens, oldest first: monotonic time, seconds since the arrival."""


@dataclass
class Elastic:
    """The controller at work in one API server.

    ``report(level, predicted, backlog, objective)`` is told the state of each interval, seconds
    and token-layers, ``predicted`` NaN while unknown; ``report_step("up" | "down")`` each step.
    """

    settings: ElasticSettings
    load: Load
    report: Callable[[float, float, float, float], None]
    report_step: Callable[[Literal["up", "down"]], None]
    clock: Clock = time.monotonic
    backlog: Backlog = field(init=False)
    controller: Controller = field(init=False)
    _seen: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        self.backlog = Backlog(self.clock)
        self.controller = Controller(self.settings, self.clock)

    def budget(self, minimum: float, maximum: float) -> float:
        """The budget of a request that comes now and leaves it open between bounds."""
        return within(self.settings.levels, self.controller.level, minimum, maximum)

    async def run(self) -> None:
        """Decide once an interval until cancelled."""
        while True:
            await asyncio.sleep(self.settings.interval_seconds)
            self.tick()

    def tick(self) -> None:
        """One decision."""
        # several answers to one prompt have the same times: one request to us
        new = dict.fromkeys(each for each in self.load.first_tokens if each[0] > self._seen)
        ttfts = list(new)
        self._seen = max((when for when, _ in ttfts), default=self._seen)
        self.backlog.settle([when for when, _ in ttfts], self.load.waiting)
        before = self.controller.level
        self.controller.observe(self.backlog.signals(self.load, ttfts))
        level = self.controller.decide()
        known, backlog = self.controller.predicted_ttft, self.controller.backlog
        predicted = math.nan if known is None else known
        if level != before:
            self.report_step("up" if level > before else "down")
            logger.info(
                "VTR answers budget auto with %g, before with %g (%s: %.2f s to a first token,"
                " %.0f token-layers wait)",
                level,
                before,
                self.controller.reason,
                predicted,
                backlog,
            )
        self.report(level, predicted, backlog, self.settings.ttft_seconds)
