"""The backend over HTTP: a list of running VTR servers answers what the search asks.

Any fleet becomes the evaluator, and the fleet may change while a search runs: answers depend on
model and vLLM, not on which server gave them. Only their rounding depends on what a server
happened to batch together.
"""

import json
import operator
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import httpx
from PIL import Image

from vtr_vllm.adaptive import Prompt
from vtr_vllm.errors import ConfigurationError, EvaluationFailed
from vtr_vllm.image_files import encode_png
from vtr_vllm.schedules import (
    ModelGeometry,
    Plan,
    RankRule,
    adaptive_rules,
    make_plan,
    see_no_question,
)
from vtr_vllm.search.answers import TOP_LOGPROBS, Answer, Batch, GeneratedToken, Task, messages
from vtr_vllm.search.calibration import Item, data_uri
from vtr_vllm.search.candidates import Candidate, scaled
from vtr_vllm.search.fleet import Fleet, FleetRequest
from vtr_vllm.search.servers import error_of, error_text


class HTTPEvaluator:
    """Evaluates on ``servers``, each an address such as ``http://127.0.0.1:8000``.

    ``in_flight`` requests go to each at a time. A server that fails is left alone for a while, and
    its requests go to the others. ``patience``: seconds without an answer after which a request
    counts as failed, and a fleet that is down as a whole is given up. Raises EvaluationFailed for
    a server that cannot be reached, ConfigurationError for servers that differ or are no VTR
    servers.
    """

    def __init__(
        self,
        servers: Sequence[str],
        max_tokens: int,
        in_flight: int = 32,
        api_key: str | None = None,
        patience: float = 300.0,
    ) -> None:
        self._fleet = Fleet(servers, in_flight, patience, api_key)
        self._max_tokens = max_tokens

    @property
    def geometry(self) -> ModelGeometry:
        """The geometry that every server reports."""
        return self._fleet.served.geometry

    @cached_property
    def versions(self) -> dict[str, str]:
        """Model name, its weights and releases; no address, so that another fleet's answers count as well."""
        served = self._fleet.served
        found = {
            "model": served.model,
            "max_tokens": str(self._max_tokens),
            "vtr": version("vtr-vllm"),
        }
        said = {"vllm": served.vllm, "checkpoint": served.checkpoint}
        return found | {name: value for name, value in said.items() if value is not None}

    @cached_property
    def has_cls(self) -> bool:
        """Whether a request with the rank rule ``cls`` is served."""
        keep = (0.5,) * self.geometry.layers
        task = Task(Candidate(keep, (RankRule.parse("cls"),)), _probe_item())
        name = "the probe for rank rule cls"
        request = FleetRequest(name, partial(self._body, task), partial(_is_served, name, task))
        return self._fleet.run([request]).answers[0]

    @cached_property
    def band_starts(self) -> tuple[int, ...]:
        """What the servers say, else what an engine has by itself."""
        if self._fleet.served.band_starts is not None:
            return self._fleet.served.band_starts
        from vtr_vllm.engine.common.config import band_starts  # loads vLLM

        return band_starts(self.geometry.layers, None)

    @property
    def retries(self) -> int:
        """Requests that failed on a server and were put back into the queue, since the start."""
        return self._fleet.retries

    def run(self, tasks: Sequence[Task]) -> Batch:
        """Answer every task; raises EvaluationFailed with what a server said.

        That is a refused task, one that failed five times or ran otherwise than it was asked, or
        a fleet that is down as a whole.
        """
        replies = self._fleet.run([self._request(f"item {task.item.id}", task) for task in tasks])
        return Batch(replies.answers, replies.busy, replies.room)

    def prompts(self, items: Sequence[Item]) -> list[Prompt]:
        """Raises ConfigurationError: a server does not tell how it tokenises a chat with images."""
        raise ConfigurationError(
            f"the prompts of {len(items)} items cannot be read over HTTP, and a chooser looks at their"
            " tokens; search a family with engines of its own: leave out --servers"
        )

    def close(self) -> None:
        """Nothing: no connection outlives ``run``."""

    def _request(self, name: str, task: Task) -> FleetRequest[Answer]:
        return FleetRequest(name, partial(self._body, task), partial(_answer, name, task))

    def _body(self, task: Task) -> bytes:
        images = [{"type": "image_url", "image_url": {"url": uri}} for uri in _image_uris(task)]
        body = {
            "model": self._fleet.served.model,
            "messages": messages(task.item, images),
            "temperature": 0,
            "repetition_penalty": 1,  # a model's generation config may have another
            "max_tokens": self._max_tokens,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        # said of the unreduced model too: else the server's or the key's default budget would run
        asked: Mapping[str, object] = task.candidate.vtr_field() or {"budget": 1.0}
        return json.dumps(body | {"vtr": asked}).encode()


def _by_token(tops: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Log-probabilities by token text; of tokens with the same text the likeliest counts."""
    return {top["token"]: top["logprob"] for top in reversed(tops)}


def _image_uris(task: Task) -> list[str]:
    """The item's own files, or losslessly what the candidate makes of their pixels."""
    scale = task.candidate.image_scale
    if scale == 1.0:
        return task.item.data_uris()
    return [data_uri(encode_png(scaled(image, scale))) for image in task.item.load_images()]


def _probe_item() -> Item:
    return Item(
        id="probe",
        image=encode_png(Image.new("RGB", (32, 32), "gray")),
        question="What is this?",
        answers=("",),
        metric="exact_match",
        kind=None,
        line=0,
        image_hash="",
    )


def _is_served(name: str, task: Task, response: httpx.Response) -> bool:
    """False where the server says that the model cannot do it; other refusals are raised."""
    if error_of(response).get("code") == "unsupported_request":
        return False
    _answer(name, task, response)
    return True


def _answer(name: str, task: Task, response: httpx.Response) -> Answer:
    if response.status_code != httpx.codes.OK:
        raise EvaluationFailed(f"{response.url} refused {name}: {error_text(response)}")
    try:
        body = response.json()
        choice = body["choices"][0]
        steps = tuple(
            GeneratedToken(step["token"], _by_token(step["top_logprobs"]))
            for step in choice["logprobs"]["content"]
        )
        n_vision, kept = body["vtr"]["vision_tokens"], list(body["vtr"]["kept_per_layer"])
        n_text = body["usage"]["prompt_tokens"] - n_vision
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise TypeError(f"content is {text}")
        asked = list(_plan(task.candidate, n_vision).counts)
    except (ValueError, KeyError, IndexError, TypeError) as err:
        raise EvaluationFailed(
            f"{response.url} answered {name} without text, log-probabilities or vtr facts"
            f" ({type(err).__name__}: {err}); start it with `vtr serve`, without a parser for"
            " reasoning or tools"
        ) from err
    if not _as_asked(kept, asked, task):
        raise EvaluationFailed(
            f"{response.url} ran {name} with {kept} vision tokens per layer, and {asked} were asked"
            " for; start that server with `vtr serve` of this release, and let nothing in between"
            " change requests"
        )
    found = tuple(kept) if _plan(task.candidate, n_vision).is_adaptive else None
    return Answer(text, steps, n_vision, n_text, found)


def _plan(candidate: Candidate, n_vision: int) -> Plan:
    """That of a prompt with ``n_vision`` vision tokens, ranked together."""
    return make_plan(candidate.keep, candidate.rules, n_vision)


def _as_asked(kept: Sequence[int], asked: Sequence[int], task: Task) -> bool:
    """Whether these ran: of adaptive cuts no more; images that are each cut by themselves may each round
    by a half."""
    if adaptive_rules(task.candidate.rules):
        return len(kept) == len(asked) and all(map(operator.le, kept, asked))
    images = len(task.item.image_hashes)
    by_image = images > 1 and see_no_question(task.candidate.rules)
    most = (images + 1) // 2 if by_image else 0
    return len(kept) == len(asked) and all(
        abs(one - other) <= most for one, other in zip(kept, asked, strict=True)
    )
