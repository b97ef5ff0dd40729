"""One request, from its arrival to its end, as metrics, allowance and controller see it."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vtr_server.operations.metrics import (
    Outcome,
    observe_answer,
    observe_first_token,
    observe_outcome,
    tier_label,
)
from vtr_server.policy.elastic import Elastic, Work
from vtr_server.policy.settings import KeySettings
from vtr_server.policy.vtr_answer import AdmittedRequest, kept_per_layer
from vtr_server.policy.vtr_field import AutoAnswer, VTRAnswer
from vtr_vllm.errors import RequestTimeout, VTRError
from vtr_vllm.schedules import ModelGeometry

__all__ = ["RequestObserver"]


@dataclass
class RequestObserver:
    """Told of a request's stages; tells on what each of them means."""

    tiers: Mapping[str, float | str]
    bands: Sequence[int]
    """First layer of each KV band."""
    geometry: ModelGeometry
    key: KeySettings | None
    elastic: Elastic | None
    why_cut_off: Callable[[], Exception | None] = lambda: None
    """Why the gate ended the request; None if it did not."""
    _id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _arrived: float = field(default_factory=time.monotonic)
    _prompts: int = 0
    _first_token: float | None = None
    _tier: str = "-"
    _source: str = "-"
    _ended: bool = False

    def prompt(self, prompt: AdmittedRequest, auto: AutoAnswer | None) -> None:
        """The engine is given one of the request's prompts; ``auto`` if the server chose."""
        if self.elastic is not None:
            self._prompts += 1
            name = f"{self._id}-{self._prompts}"
            self.elastic.backlog.admitted(name, _work(prompt, auto, self.geometry))

    def admitted(self, known: VTRAnswer) -> None:
        """What the request runs with is known; called once, maybe after its first token."""
        self._tier = known.tier or tier_label(known.budget, known.schedule, self.tiers)
        self._source = known.source
        observe_answer(known, self.bands)
        if self._first_token is not None:
            observe_first_token(self._first_token, self._tier)

    def first_token(self) -> None:
        """The first token of the first prompt is there; of a stream only, vLLM shows it."""
        if self._first_token is not None:
            return
        self._first_token = time.monotonic() - self._arrived
        if self.elastic is not None:
            self.elastic.backlog.first_token(f"{self._id}-1")
        if self._tier != "-":
            observe_first_token(self._first_token, self._tier)

    def end(self, outcome: Outcome) -> None:
        """The request is over; only the first call counts."""
        if self._ended:
            return
        self._ended = True
        if self.elastic is not None:
            for number in range(1, self._prompts + 1):
                self.elastic.backlog.done(f"{self._id}-{number}", completed=outcome == "ok")
        observe_outcome(
            outcome,
            tier=self._tier,
            source=self._source,
            key=self.key.name if self.key else "-",
            seconds=time.monotonic() - self._arrived,
        )

    def fail(self, err: BaseException) -> None:
        """The request ended with an error, of which being cut off is one."""
        self.end(_outcome_of(self.why_cut_off() or err))


def _outcome_of(err: BaseException) -> Outcome:
    if isinstance(err, asyncio.CancelledError | GeneratorExit):
        return "aborted"
    if isinstance(err, RequestTimeout):
        return "timeout"
    if isinstance(err, VTRError):
        return "refused" if err.http_status < 500 else "error"
    return "client_error" if isinstance(err, ValueError) else "error"


def _work(prompt: AdmittedRequest, auto: AutoAnswer | None, geometry: ModelGeometry) -> Work:
    text, kept = prompt.n_text * geometry.layers, sum(kept_per_layer(prompt, geometry))
    if auto is None:
        return Work(text, kept)
    return Work(text, kept, prompt.n_vision * geometry.layers, auto.minimum, auto.maximum)
