"""What a model answered, and the evaluator that asks it: one protocol, several backends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vtr_vllm.adaptive import Prompt
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.search.calibration import Item, Turn
from vtr_vllm.search.candidates import Candidate

TOP_LOGPROBS = 20
"""Log-probabilities read per answer token: what OpenAI's protocol and vLLM allow by default."""


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token."""

    token: str
    logprobs: Mapping[str, float]
    """Token text to log-probability of the likeliest tokens, natural logarithm."""


@dataclass(frozen=True)
class Answer:
    """One greedy answer."""

    text: str
    steps: tuple[GeneratedToken, ...]
    n_vision: int
    """Vision tokens in the prompt."""
    n_text: int
    """Prompt tokens that are no vision tokens."""
    found: tuple[int, ...] | None = None
    """Vision tokens that each layer saw, where adaptive cuts found how many; None: as asked."""


@dataclass(frozen=True)
class Task:
    """One question under one candidate."""

    candidate: Candidate
    item: Item


@dataclass(frozen=True)
class Batch:
    """The answers to a list of tasks, in the order asked, and how full the engines were."""

    answers: tuple[Answer, ...]
    busy: float
    """Requests in flight, summed over engine steps (or, over HTTP, seconds)."""
    room: float
    """Requests that could have been in flight, summed alike; ``busy / room`` is the occupancy."""


@dataclass(frozen=True)
class EngineOptions:
    """How the engine is started."""

    model: str
    """Path or name, or ``demo``."""
    max_tokens: int = 32
    """Longest answer."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``vllm.LLM``."""
    images: int = 1
    """Images of a prompt, at most."""


class Evaluator(Protocol):
    """Runs tasks on the engine that serves; raises EvaluationFailed when it cannot."""

    @property
    def geometry(self) -> ModelGeometry:
        """The model's geometry, to which candidates must fit."""

    @property
    def versions(self) -> Mapping[str, str]:
        """What the answers depend on beside candidate and item: releases, model, dtype."""

    @property
    def has_cls(self) -> bool:
        """Whether the model's vision tower has a CLS token, which the rank rule ``cls`` needs."""

    @property
    def band_starts(self) -> tuple[int, ...]:
        """First layer of each of the engine's KV bands, ascending from 0: where local schedules cut."""

    def run(self, tasks: Sequence[Task]) -> Batch:
        """Answer every task; one refused task fails them all."""

    def prompts(self, items: Sequence[Item]) -> list[Prompt]:
        """The prompt of each item as a chooser sees it; raises ConfigurationError where that cannot be
        known."""

    def close(self) -> None:
        """Give back processes and connections."""


def messages(item: Item, images: Sequence[Any]) -> list[dict[str, Any]]:
    """The chat that asks ``item``, with its ``images`` as OpenAI's or vLLM's image parts."""
    left = iter(images)

    def asked(turn: Item | Turn) -> dict[str, Any]:
        image = [] if turn.image is None else [next(left)]
        return {"role": "user", "content": [*image, {"type": "text", "text": turn.question}]}

    chat: list[dict[str, Any]] = []
    for turn in item.history:
        chat += [asked(turn), {"role": "assistant", "content": turn.answer}]
    return [*chat, asked(item)]
