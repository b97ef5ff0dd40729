"""One request, from its arrival to its end, as metrics, allowance and controller see it."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException

from vtr_server.operations.adaptive_metrics import observe_adaptive
from vtr_server.operations.metrics import (
    UNKNOWN,
    observe_cached,
    observe_first_token,
    observe_outcome,
    observe_prompt,
    observe_schedule,
    observe_vision_work,
)
from vtr_server.operations.outcomes import Outcome, outcome_of
from vtr_server.policy.elastic import Elastic, Work
from vtr_server.policy.settings import KeySettings
from vtr_server.policy.vtr_answer import AdmittedRequest, Kind, kept_per_layer, kind_of
from vtr_server.policy.vtr_field import AutoAnswer, VTRAnswer
from vtr_vllm.errors import VTRError
from vtr_vllm.schedules import ModelGeometry

__all__ = ["RequestObserver", "tier_label"]

_BANDS = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Upper ends, for budgets of no tier; the budgets that people use have a label of their own."""


@dataclass
class RequestObserver:
    """Told of a request's stages; tells on what each of them means."""

    tiers: Mapping[str, float | str]
    bands: Sequence[int]
    """First layer of each KV band."""
    geometry: ModelGeometry
    key: KeySettings | None
    elastic: Elastic | None
    first_token_made: Callable[[], float | None] = lambda: None
    """When the engine made the first token, on the monotonic clock; None if it has not."""
    vision_cached: Callable[[], int] = lambda: 0
    """How many vision tokens came from the prefix cache, as far as is known."""
    why_cut_off: Callable[[], Exception | None] = lambda: None
    """Why the gate ended the request; None if it did not."""
    arrived: float = field(default_factory=time.monotonic)
    """When its first byte came."""
    _id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _prompts: int = 0
    _first_token_told: bool = False
    _tier: str = UNKNOWN
    _source: str = UNKNOWN
    _kind: Kind | None = None
    _counted_later: list[Callable[[], VTRAnswer]] = field(default_factory=list)
    """The facts of each prompt with adaptive cuts."""
    _ended: bool = False

    def prompt(
        self,
        prompt: AdmittedRequest,
        known: VTRAnswer,
        later: Callable[[], VTRAnswer] | None = None,
    ) -> None:
        """The engine is given one of the request's prompts; ``known`` is of this prompt alone.

        ``later``: what is known of it at the end, where it has adaptive cuts.
        """
        self._prompts += 1
        if self._prompts == 1:
            self._tier = known.tier or tier_label(known.budget, known.schedule, self.tiers)
            self._source = known.source
            self._kind = kind_of(known)
            observe_schedule(known.schedule, known.source)
        observe_prompt(known, self._key, prompt.returning)
        if later is None:
            self._observe_work(known)
        else:
            self._counted_later.append(later)
        if self.elastic is not None:
            work = _work(prompt, known.auto, self.geometry)
            self.elastic.backlog.admitted(f"{self._id}-{self._prompts}", work)

    def first_token(self) -> None:
        """The first token of a stream is there: of an answer in one piece it is seen at the end."""
        if self._first_token_told:
            return
        if self.elastic is not None:
            self.elastic.backlog.first_token(f"{self._id}-1")
        self._tell_first_token(time.monotonic(), streamed=True)

    def end(self, outcome: Outcome) -> None:
        """The request is over; only the first call counts. The gate calls last."""
        if self._ended:
            return
        self._ended = True
        if self.elastic is not None:
            for number in range(1, self._prompts + 1):
                self.elastic.backlog.done(f"{self._id}-{number}", completed=outcome == "ok")
        if not self._first_token_told and (made := self.first_token_made()) is not None:
            self._tell_first_token(made, streamed=False)
        for later in self._counted_later:
            self._observe_work(later())
        if self._kind is not None:
            observe_cached(self.vision_cached(), self._kind)
        observe_outcome(
            outcome,
            tier=self._tier,
            source=self._source,
            key=self._key,
            seconds=time.monotonic() - self.arrived,
        )

    def _observe_work(self, known: VTRAnswer) -> None:
        observe_vision_work(known, self.bands)
        observe_adaptive(known)

    @property
    def _key(self) -> str:
        return self.key.name if self.key else UNKNOWN

    def _tell_first_token(self, when: float, streamed: bool) -> None:
        self._first_token_told = True
        observe_first_token(max(0.0, when - self.arrived), self._tier, streamed=streamed)

    def fail(self, err: BaseException) -> None:
        """The request ended with ``err``, of which being cut off is one.

        What an error that is none of ours comes to, its handler decides: the gate sees the status.
        """
        cause = self.why_cut_off() or err
        if isinstance(cause, VTRError | HTTPException | asyncio.CancelledError | GeneratorExit):
            self.end(outcome_of(cause))


def _work(prompt: AdmittedRequest, auto: AutoAnswer | None, geometry: ModelGeometry) -> Work:
    text, kept = prompt.n_text * geometry.layers, sum(kept_per_layer(prompt, geometry))
    if auto is None:
        return Work(text, kept)
    return Work(text, kept, prompt.n_vision * geometry.layers, auto.minimum, auto.maximum)


def tier_label(budget: float, schedule: str, tiers: Mapping[str, float | str]) -> str:
    """The tier that stands for this budget or for this schedule, else the budget's upper end.

    An upper end because a mean keep rate, of a vtw or G-Search schedule say, lies anywhere.
    """
    for name, meaning in tiers.items():
        if meaning == schedule if isinstance(meaning, str) else abs(meaning - budget) < 1e-9:
            return name
    return str(next(end for end in _BANDS if budget <= end + 1e-9))
