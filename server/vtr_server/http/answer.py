"""What happens to one request: ask -> schedule -> vLLM's own handler -> its answer with the facts.

The same for every endpoint that generates; ``vtr_server.http.endpoints`` says in what they differ.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from vtr_server.gate.context import RequestContext
from vtr_server.gate.middleware import Gate
from vtr_server.gate.scopes import route_path
from vtr_server.http.errors import in_form_of
from vtr_server.operations.outcomes import Outcome, outcome_of_status
from vtr_server.operations.request_observer import RequestObserver
from vtr_server.policy.adaptive_choice import adapted, adapts
from vtr_server.policy.elastic import Elastic
from vtr_server.policy.misplaced import refuse_misplaced
from vtr_server.policy.requested_budget import (
    HEADER,
    REUSE_HEADER,
    Asked,
    Bounds,
    bounds,
    find_ask,
    split_alias,
    unreduced,
)
from vtr_server.policy.schedule_choice import ChosenSchedule, ScheduleChooser
from vtr_server.policy.schedule_folder import ScheduleFolder
from vtr_server.policy.settings import KeySettings, ServerSettings
from vtr_server.policy.vtr_answer import facts, headers, kept_per_layer, usage_details
from vtr_server.policy.vtr_field import VTRAnswer, refuse_wire_keys
from vtr_server.vllm_api.engine import (
    Admitted,
    Chunks,
    Engine,
    Failure,
    Whole,
    collect,
    collect_first_tokens,
    first_token,
)
from vtr_vllm.errors import EngineNotReady, RequestError, UnsupportedRequest
from vtr_vllm.schedules import TRACE_KEY

__all__ = ["Endpoint", "GenerationService", "answer"]


@dataclass(frozen=True)
class GenerationService:
    """What the routes need, on ``app.state.vtr``."""

    engine: Engine
    settings: ServerSettings
    schedules: ScheduleFolder
    elastic: Elastic | None
    gate: Gate


@dataclass(frozen=True)
class Endpoint:
    """In what the endpoints differ."""

    serve: Callable[[Engine, Any, Request], Awaitable[Failure | Whole | Chunks]]
    details: Callable[[Any], list[str]]
    """The ``image_url.detail`` of each image of a request."""
    usage: str
    """Where usage says of what the prompt was made."""
    closes: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
    """Of a parsed event: the object that the facts go into, None if the event ends nothing."""
    may_close: Callable[[str], bool]
    """Of an event as it is sent, whether it can end something: the others are not parsed."""
    early: str = "\n"
    """How an event begins that has the facts before the end, and so no trace; no event does by default."""
    has_images: Callable[[Any], bool] = lambda _: False
    """Of a request that can have beams, whether a part of its messages is an image or a video."""


@dataclass
class _Decision:
    """How the schedule of each prompt is found; the choice is known once one was admitted."""

    chooser: ScheduleChooser
    asked: Asked
    policy: Bounds
    trace: str | None = None
    """Under which name the engine keeps the trace; None where none was asked for."""
    has_beams: bool = False
    choice: ChosenSchedule | None = None
    """Of the last prompt, where each has its own."""
    base: ChosenSchedule | None = None
    """Whose budget is the mean, where each prompt gets its own schedule of a family."""

    def __post_init__(self) -> None:
        asked = self.asked
        if asked.ask.max_flops_fraction is not None:
            if asked.adapt.wanted and asked.adapt.explicit:
                raise RequestError(
                    "adapt and max_flops_fraction do not go together: the one holds on average, the"
                    " other for each prompt; ask for a budget, or leave adapt out"
                )
            return
        choice = self.chooser.choose(
            asked.ask, self.policy, movable=not asked.explicit, reuse=asked.reuse
        ).with_floor(asked.per_image_floor)
        if adapts(self.chooser, asked.ask, choice, asked.adapt):
            self.base = choice
        else:
            self.choice = choice

    def __call__(self, prompt: Admitted) -> Mapping[str, Any]:
        """What the ``extra_args`` of a prompt gain.

        Raises as ``ScheduleChooser`` does, and UnsupportedRequest for beams that would be reduced.
        """
        if self.choice is None or not self.has_beams:  # every beam of every token comes by
            self._choose(prompt)
        assert self.choice is not None
        if prompt.n_vision:
            self.refuse_reduced_beams()
        return self.choice.wire | ({TRACE_KEY: self.trace} if self.trace else {})

    def refuse_reduced_beams(self) -> None:
        """Raise UnsupportedRequest for beams of images, where the choice is known and reduces."""
        if self.has_beams and self.choice is not None and self.choice.wire:
            raise UnsupportedRequest(
                f"use_beam_search is true, and the request would run at budget {self.choice.budget:g};"
                " beam search of images runs at full budget only: ask for budget 1.0, or leave out"
                " use_beam_search"
            )

    def _choose(self, prompt: Admitted) -> None:
        """Where the choice is the prompt's: by its cost, or by what it is predicted to need."""
        asked, fraction = self.asked, self.asked.ask.max_flops_fraction
        if fraction is not None:
            choice = self.chooser.choose_by_flops(
                fraction, self.policy, prompt.n_vision, prompt.n_text, asked.reuse
            )
            self.choice = choice.with_floor(asked.per_image_floor)
        elif self.base is not None:
            choice = adapted(self.chooser, self.base, self.policy, prompt.prompt)
            self.choice = choice.with_floor(asked.per_image_floor).after(self.choice)


async def answer(
    service: GenerationService, endpoint: Endpoint, request: Any, raw_request: Request
) -> Response:
    """Serve one request."""
    context = RequestContext.of(raw_request.scope)
    watch = RequestObserver(
        tiers=service.settings.tiers,
        bands=service.engine.band_starts,
        geometry=service.engine.geometry,
        key=context.caller.key,
        elastic=service.elastic,
        arrived=context.arrived,
        why_cut_off=lambda: context.cut_off,
    )
    context.observer = watch
    try:
        return await _serve(service, endpoint, request, raw_request, watch)
    except BaseException as err:
        watch.fail(err)
        raise


async def _serve(
    service: GenerationService,
    endpoint: Endpoint,
    request: Any,
    raw_request: Request,
    watch: RequestObserver,
) -> Response:
    decide = _decide(service, endpoint, request, raw_request, watch.key)
    if reason := await service.engine.why_not_in_place():
        raise EngineNotReady(f"reduction is not in place: {reason}")
    geometry = service.engine.geometry
    pictured: list[Admitted] = []

    def found_of(choice: ChosenSchedule | None, *prompts: Admitted) -> VTRAnswer:
        """The facts with what adaptive cuts found so far: before the first token, the most that may stay."""
        assert choice is not None
        ran = [
            each.with_counts(first_tokens.counts(each.request_id)) if each.is_adaptive else each
            for each in prompts
        ]
        return facts(choice, decide.asked.by, ran, geometry)

    def noted(prompt: Admitted) -> None:
        kept = sum(kept_per_layer(prompt, geometry)) / geometry.layers
        service.gate.charge(RequestContext.of(raw_request.scope), kept)
        if prompt.n_vision:
            pictured.append(prompt)
        later = partial(found_of, decide.choice, prompt) if prompt.is_adaptive else None
        watch.prompt(prompt, found_of(decide.choice, prompt), later)

    with (
        collect(decide, noted, has_beams=decide.has_beams) as admitted,
        collect_first_tokens() as first_tokens,
        # Of an answer in one piece vLLM shows nothing before its end.
        first_token(watch.first_token) if getattr(request, "stream", False) else nullcontext(),
    ):
        watch.first_token_made = first_tokens.earliest

        def vision_cached() -> int:
            return sum(
                each.vision_before(first_tokens.cached(each.request_id)) for each in pictured
            )

        watch.vision_cached = vision_cached
        found = await endpoint.serve(service.engine, request, raw_request)
    if isinstance(found, Failure):
        watch.end(_outcome(found))
        body = in_form_of(route_path(raw_request.scope), found.status, found.body)
        return JSONResponse(body, status_code=found.status)
    facts_now = partial(found_of, decide.choice, *admitted)
    known = facts_now()
    later = facts_now if any(each.is_adaptive for each in admitted) else None
    tell = _Tell(service.engine, endpoint, known, later, decide.trace, admitted, vision_cached)
    if isinstance(found, Whole):
        await tell(found.body)
        watch.end("ok")
        return JSONResponse(found.body, headers=(found.headers or {}) | headers(known))
    events = _stream(found.events, tell, watch)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers(known))


def _outcome(failure: Failure) -> Outcome:
    """How a request ended that vLLM answered with an error."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return "aborted"  # the client is gone: vLLM takes that for a request at fault
    return outcome_of_status(failure.status)


def _decide(
    service: GenerationService,
    endpoint: Endpoint,
    request: Any,
    raw_request: Request,
    key: KeySettings | None,
) -> _Decision:
    """Check what is asked, before anything is decoded or tokenised."""
    request.model, alias = split_alias(request.model, service.engine.served_models())
    asked = find_ask(
        service.settings,
        key,
        request.vtr,
        raw_request.headers.getlist(HEADER),
        alias,
        endpoint.details(request) if service.settings.detail else (),
        raw_request.headers.getlist(REUSE_HEADER),
    )
    refuse_wire_keys(getattr(request, "vllm_xargs", None))
    refuse_misplaced(request.misplaced, raw_request)
    chooser = service.schedules.offer.chooser
    trace = uuid.uuid4().hex if asked.trace else None
    policy, has_beams = bounds(service.settings, key), _has_beams(request)
    if has_beams or _asks_of_the_prompt(request):
        asked = unreduced(asked, policy)
    decision = _Decision(chooser, asked, policy, trace, has_beams)
    if has_beams and endpoint.has_images(request):
        decision.refuse_reduced_beams()
    if getattr(request, "background", False):
        raise UnsupportedRequest(
            "background is true, and a response in the background has no answer that could say"
            " what it ran with; leave it out"
        )
    if asked.trace and (getattr(request, "n", 1) or 1) > 1:
        raise UnsupportedRequest(f"trace is true and n is {request.n}; trace one answer at a time")
    if asked.trace and (prompts := _prompts(request)) > 1:
        raise UnsupportedRequest(
            f"trace is true and the request has {prompts} prompts; trace one prompt at a time"
        )
    return decision


def _has_beams(request: Any) -> bool:
    return bool(getattr(request, "use_beam_search", False))


def _asks_of_the_prompt(request: Any) -> bool:
    """Whether logprobs of the prompt are wanted, as by an echo; none are refused here (see admission)."""
    wanted = getattr(request, "prompt_logprobs", None)
    if wanted is None and getattr(request, "echo", False):
        wanted = getattr(request, "top_logprobs", getattr(request, "logprobs", None))
    return wanted is not None


def _prompts(request: Any) -> int:
    """Of a body: a batch has one a conversation, a completion one a text or list of tokens."""
    several = getattr(request, "messages", None) or getattr(request, "prompt", None)
    if isinstance(several, list) and several and isinstance(several[0], list | str):
        return len(several)
    return 1


@dataclass
class _Tell:
    """Writes the facts into what the client gets; a trace is fetched when it is first wanted."""

    engine: Engine
    endpoint: Endpoint
    known: VTRAnswer
    later: Callable[[], VTRAnswer] | None
    """What is known once the first token is there; None: nothing more."""
    trace: str | None
    admitted: Sequence[Admitted]
    vision_cached: Callable[[], int]
    """Known once the first token is there, as everything that tells of the facts is later."""

    async def __call__(self, holder: Any, *, early: bool = False) -> None:
        """Put the facts into ``holder``, and into its usage; ``early``, while there is no trace yet."""
        traced = self.trace is not None and not early
        if self.later is not None:
            self.known = self.later().model_copy(update={"trace": self.known.trace})
        if self.trace is not None and traced and self.known.trace is None:
            self.known.trace = await self.engine.trace(self.trace, self.admitted)
        self.known.vision_tokens_cached = self.vision_cached()
        holder["vtr"] = self.known.model_dump(exclude=None if traced else {"trace"})
        if usage := holder.get("usage"):
            name = self.endpoint.usage
            usage[name] = {**(usage.get(name) or {}), **usage_details(self.known)}

    async def closing(self, event: str) -> str:
        """The event with the facts in it, if it ends something."""
        head, mark, data = event.partition("data: ")
        body = json.loads(data)
        holder = self.endpoint.closes(body)
        if holder is None:
            return event
        await self(holder, early=event.startswith(self.endpoint.early))
        return f"{head}{mark}{json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


_FAILURES = ('data: {"error"', "event: error", "event: response.failed")
"""How an event begins after which nothing comes."""


async def _stream(
    events: AsyncGenerator[str, None], tell: _Tell, watch: RequestObserver
) -> AsyncIterator[str]:
    """Pass events on, with the facts in those that end a choice and in the usage chunk."""
    failed = False
    try:
        async for event in events:
            failed = failed or event.startswith(_FAILURES)
            if tell.endpoint.may_close(event):
                yield await tell.closing(event)
            else:
                yield event
        watch.end("error" if failed else "ok")
    except BaseException as err:
        watch.fail(err)
        raise
    finally:
        # The client may be gone and this task cancelled: the engine must still hear of it.
        await asyncio.shield(events.aclose())
