"""An engine as a queue, in simulated time: what a controller does to a load, without a clock."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from vtr_server.policy.elastic import Elastic, Work
from vtr_server.policy.settings import ElasticSettings

LAYERS, TEXT, VISION = 24, 31, 576
FULL_SECONDS = 0.25
"""One prompt at full budget, alone."""
TOWER = 0.04
"""Share of it that no budget makes cheaper."""
STEP_PROMPTS = 3
"""The engine prefills at most so many prompts in one step; their first tokens come together."""
OBJECTIVE = 3 * FULL_SECONDS
CAPACITY = 1 / FULL_SECONDS


class Reported:
    """What the statistics would say; counts the steps that are reported, too."""

    def __init__(self) -> None:
        self.waiting = self.running = 0
        self.kv_usage = 0.0
        self.first_tokens: list[tuple[float, float]] = []
        self.steps: list[str] = []


@dataclass
class Run:
    """What came of a load."""

    seconds: float
    ttfts: list[float] = field(default_factory=list)
    budgets: list[float] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    """After each interval."""

    @property
    def p95(self) -> float:
        """Seconds."""
        return sorted(self.ttfts)[math.ceil(0.95 * len(self.ttfts)) - 1]

    @property
    def goodput(self) -> float:
        """First tokens in time, a second."""
        return sum(seconds <= OBJECTIVE for seconds in self.ttfts) / self.seconds

    @property
    def mean_budget(self) -> float:
        """Of the requests."""
        return sum(self.budgets) / len(self.budgets)

    def changes(self, start: float) -> int:
        """Level changes after the share ``start`` of the run."""
        late = self.levels[int(start * len(self.levels)) :]
        return sum(a != b for a, b in itertools.pairwise(late))


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times of a Poisson process."""
    draw = random.Random(seed)
    return list(_until(seconds, lambda: draw.expovariate(rate)))


def regular(rate: float, seconds: float) -> list[float]:
    """Arrival times at equal distances."""
    return list(_until(seconds, lambda: 1 / rate))


def _until(seconds: float, gap) -> Iterator[float]:
    time = gap()
    while time < seconds:
        yield time
        time += gap()


class Simulation:
    """One server that takes whole prompts, in the order they came."""

    def __init__(self, settings: ElasticSettings | None = None, streamed: bool = True) -> None:
        self.now = 0.0
        self.load = Reported()
        self.streamed = streamed
        self.elastic = Elastic(
            settings or ElasticSettings(ttft_seconds=OBJECTIVE),
            self.load,
            lambda *state: None,
            self.load.steps.append,
            lambda: self.now,
        )
        self.queue: list[tuple[str, float, Work]] = []

    def run(self, arrivals: list[float], seconds: float, budget: float | None = None) -> Run:
        """Serve ``arrivals`` at ``budget``, or at the controller's; decide for ``seconds``."""
        found = Run(seconds)
        interval = self.elastic.settings.interval_seconds
        ticks = [interval * n for n in range(1, int(seconds / interval) + 1)]
        # at the same time: a step's end, then arrivals, then the decision
        events: list[tuple[float, int, list]] = [(time, 1, []) for time in arrivals]
        events += [(time, 2, []) for time in ticks]
        heapq.heapify(events)
        while events:
            self.now, kind, batch = heapq.heappop(events)
            if kind == 2:
                self.elastic.tick()
                found.levels.append(self.elastic.controller.level)
                continue
            if kind == 1:
                self._arrive(found, budget)
            else:
                self._answer(found, batch)
            if self.queue and not self.load.running:
                heapq.heappush(events, self._start())
            self.load.waiting = len(self.queue)
        return found

    def _arrive(self, found: Run, budget: float | None) -> None:
        chosen = self.elastic.budget(0.0, 1.0) if budget is None else budget
        vision = VISION * LAYERS
        work = Work(TEXT * LAYERS, chosen * vision, 0.0 if budget else vision)
        name = str(len(found.budgets))
        found.budgets.append(chosen)
        self.elastic.backlog.admitted(name, work)
        self.queue.append((name, self.now, work))

    def _start(self) -> tuple[float, int, list]:
        batch, self.queue = self.queue[:STEP_PROMPTS], self.queue[STEP_PROMPTS:]
        self.load.running = len(batch)
        full = LAYERS * (TEXT + VISION)
        seconds = sum(
            FULL_SECONDS * (TOWER + (1 - TOWER) * work.spent / full) for _, _, work in batch
        )
        return self.now + seconds, 0, batch

    def _answer(self, found: Run, batch: list) -> None:
        self.load.running = 0
        for name, arrived, _ in batch:
            found.ttfts.append(self.now - arrived)
            self.load.first_tokens.append((self.now, self.now - arrived))
            if self.streamed:
                self.elastic.backlog.first_token(name)
        del self.load.first_tokens[:-256]
