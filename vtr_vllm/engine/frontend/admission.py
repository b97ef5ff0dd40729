"""Admission: what cannot run as asked is refused before it reaches the engine.

vLLM turns every request, of the ``LLM`` class and of the server alike, into an engine request in
``InputProcessor.process_inputs``, in the front-end process. There the prompt is tokenised and the
images' places are known, so the plan is too. We wrap that one method.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor

from vtr_vllm.adaptive import Prompt
from vtr_vllm.engine.common.config import LayerBands, is_active
from vtr_vllm.engine.common.request_view import read_request, vision_items, vision_span
from vtr_vllm.engine.common.supported_models import SUPPORTED_ARCHITECTURES
from vtr_vllm.engine.frontend.image_tokens import ImageTokens, image_tokens
from vtr_vllm.engine.frontend.returning_images import ReturningImages, prefixes_of
from vtr_vllm.engine.frontend.rule_checks import check_rules
from vtr_vllm.engine.frontend.sender_cache import about_to_send
from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS
from vtr_vllm.errors import PromptTooLong, RequestError, UnsupportedRequest
from vtr_vllm.reduction.request import IntArray, ReducedRequest
from vtr_vllm.schedules import KEEP_KEY, RULES_KEY, TRACE_KEY, UNITS_KEY, Plan


@dataclass(frozen=True)
class Admitted:
    """A request that passed admission."""

    request_id: str
    plan: Plan | None
    """None: runs unreduced."""
    n_vision: int
    n_text: int
    """Prompt tokens that are no vision tokens."""
    images: tuple[ImageTokens, ...] = ()
    """Where each image's vision tokens are, in prompt order."""
    vision: IntArray = field(default_factory=lambda: np.empty(0, np.int64), compare=False)
    """[n_vision] their positions in the prompt, ascending."""
    returning: int = 0
    """How many of them an earlier prompt had at the same places; see ``count_returning``."""
    token_ids: Sequence[int] = field(default=(), compare=False)

    @cached_property
    def prompt(self) -> Prompt:
        """What a chooser among schedules sees of it."""
        return Prompt.of(self.token_ids, self.vision, [image.tokens for image in self.images])

    @property
    def is_adaptive(self) -> bool:
        """Whether the plan has the most that may stay, and the model says how many do."""
        return self.plan is not None and self.plan.is_adaptive

    def with_counts(self, counts: Sequence[int] | None) -> "Admitted":
        """The same with the counts that its adaptive cuts found; None: they are not known."""
        if self.plan is None or counts is None:
            return self
        return replace(self, plan=self.plan.with_counts(counts))

    def vision_before(self, position: int) -> int:
        """How many vision tokens stand before a position of the prompt."""
        return int(np.searchsorted(self.vision, position))


Decide = Callable[[Admitted], Mapping[str, Any]]
"""A prompt, without a plan yet -> what its ``extra_args`` gain."""


Noted = Callable[[Admitted], None]

_BEAM = re.compile(r"(.+)-[0-9a-f]+-beam-[0-9]+")
"""How vLLM's beam search names the requests that it makes of one prompt: one a beam and token."""


@dataclass(frozen=True)
class _Collector:
    admitted: list[Admitted]
    decide: Decide | None
    noted: Noted | None
    has_beams: bool
    beams_of: set[str] = field(default_factory=set)
    """Prompts of which a beam was admitted."""

    def is_known(self, request_id: str) -> bool:
        """Whether this is one more beam of a prompt that was admitted, and no prompt of its own."""
        # A client names its requests, and may name them like beams.
        beam = _BEAM.fullmatch(request_id) if self.has_beams else None
        if beam is None:
            return False
        known = beam[1] in self.beams_of
        self.beams_of.add(beam[1])
        return known


_collector: ContextVar[_Collector | None] = ContextVar("vtr_admitted", default=None)


@contextlib.contextmanager
def collect(
    decide: Decide | None = None, noted: Noted | None = None, *, has_beams: bool = False
) -> Iterator[list[Admitted]]:
    """Collect what is admitted inside the context, in the tasks that it starts too.

    ``has_beams``: it is a beam search, all of whose beams are one prompt.
    ``decide`` is asked for the schedule of each prompt, once its length is known; ``noted`` is
    told of each prompt that is about to be admitted. Both may raise, and refuse it so.
    """
    admitted: list[Admitted] = []
    token = _collector.set(_Collector(admitted, decide, noted, has_beams))
    try:
        yield admitted
    finally:
        _collector.reset(token)


def has_admitted() -> bool:
    """Whether anything was admitted yet in the context of ``collect`` that this runs in."""
    collector = _collector.get()
    return collector is not None and bool(collector.admitted)


def decisions_only(processor: InputProcessor) -> None:
    """Have ``processor`` refuse vision tokens for which nobody decides, and keys that a client sent.

    A server's policy holds for what passes its own routes; vLLM has others that lead to the engine.
    """
    processor.vtr_decisions_only = True


def count_returning(processor: InputProcessor, images: ReturningImages) -> None:
    """Have what ``processor`` admits say how much of it came before, as far as ``images`` remembers."""
    processor.vtr_returning = images


def install() -> None:
    """Wrap vLLM's input processor; safe to call again."""
    stock = InputProcessor.process_inputs
    if getattr(stock, "vtr_admission", False):
        return

    @functools.wraps(stock)
    def process_inputs(self: InputProcessor, *args: Any, **kwargs: Any) -> EngineCoreRequest:
        request = stock(self, *args, **kwargs)
        collector = _collector.get()
        decide = collector.decide if collector is not None else None
        cache = self.renderer.mm_processor_cache
        guarded = getattr(self, "vtr_decisions_only", False)
        admitted = admit(request, self.vllm_config, decide, cache, guarded=guarded)
        if collector is not None and not collector.is_known(admitted.request_id):
            returning = getattr(self, "vtr_returning", None)
            prefixes = [] if returning is None else prefixes_of(request)
            if returning is not None:
                admitted = replace(admitted, returning=returning.returning(prefixes))
            if collector.noted is not None:
                collector.noted(admitted)
            collector.admitted.append(admitted)
            if returning is not None:
                returning.note(prefixes)
        about_to_send(cache, request.mm_features or ())
        return request

    process_inputs.vtr_admission = True
    InputProcessor.process_inputs = process_inputs


def admit(
    request: EngineCoreRequest,
    vllm_config: VllmConfig,
    decide: Decide | None = None,
    cache: Any = None,
    *,
    guarded: bool = False,
) -> Admitted:
    """Check one request; raises RequestError with the value, the limit and the next step.

    ``cache`` is the renderer's, for the grids of images that the engine has already. ``guarded``: see
    ``decisions_only``.
    """
    images = image_tokens(request.mm_features or (), vllm_config.model_config.hf_config, cache)
    spans = [vision_span(item) for item in vision_items(request.mm_features or ())]
    vision = np.concatenate([np.empty(0, np.int64), *spans])
    n_vision = len(vision)
    token_ids = request.prompt_token_ids or ()
    admitted = Admitted(
        request.request_id,
        None,
        n_vision,
        len(token_ids) - n_vision,
        images,
        vision,
        token_ids=token_ids,
    )
    params = request.sampling_params
    if guarded:
        _check_decided(params, decide, n_vision)
    if params is not None and decide is not None:
        wire = decide(admitted)
        params.extra_args = {**(params.extra_args or {}), **wire}
    if params is not None and _asks(params):
        _check_engine(vllm_config)
        _check_whole(request)
        forms = [image.form for image in images]
        params.extra_args = {
            **(params.extra_args or {}),
            UNITS_KEY: [n for form in forms for n in form],
        }
        reduced = read_request(
            params.extra_args,
            request.mm_features,
            request.prompt_token_ids,
            LayerBands.of(vllm_config),
        )
        if reduced is not None:
            _check_features(request, params)
            _check_trace(reduced, params)
            check_rules(reduced, vllm_config, adapted=request.lora_request is not None)
            _check_length(reduced, vllm_config)
            return replace(admitted, plan=reduced.plan)
    return admitted


def _asks(params: SamplingParams) -> bool:
    return bool(_wire_keys(params))


def _wire_keys(params: SamplingParams) -> list[str]:
    return [key for key in params.extra_args or () if isinstance(key, str) and key[:4] == "vtr_"]


def _check_decided(params: SamplingParams | None, decide: Decide | None, n_vision: int) -> None:
    """Refuse what would run past the policy of a server, whichever route it came by."""
    if params is not None and (sent := _wire_keys(params)):
        raise RequestError(
            f"the sampling parameters have {', '.join(sorted(sent))}; keys that start with vtr_ belong"
            ' to the server: ask by the vtr object of the body, such as {"vtr": {"budget": 0.25}}'
        )
    if decide is None and n_vision:
        raise UnsupportedRequest(
            f"the prompt has {n_vision} vision tokens, and this route takes no vision-token budget;"
            " send images to one that does, such as /v1/chat/completions or /v1/messages"
        )


def _check_engine(vllm_config: VllmConfig) -> None:
    if not is_active(vllm_config):
        raise UnsupportedRequest(
            f"the request carries {KEEP_KEY} or {RULES_KEY}, but this engine was not started for"
            f" reduction; start it with --scheduler-cls {SCHEDULER_CLS} --worker-cls {WORKER_CLS}"
        )
    architecture = vllm_config.model_config.architecture
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedRequest(
            f"vision tokens of {architecture} cannot be reduced; supported are"
            f" {', '.join(SUPPORTED_ARCHITECTURES)}; ask for budget 1.0"
        )


def _check_whole(request: EngineCoreRequest) -> None:
    """A session's later part may have no image, and the engine would reduce what an earlier one brought."""
    if request.resumable:
        raise UnsupportedRequest(
            "streaming input does not work with a budget below 1.0, which needs the whole prompt at once;"
            " send it so, or ask for budget 1.0"
        )


def _check_features(request: EngineCoreRequest, params: SamplingParams) -> None:
    excluded = {
        "prompt_logprobs": params.prompt_logprobs is not None,
        "prompt_logprob_token_ids": params.prompt_logprob_token_ids is not None,
        "prompt embeddings": request.prompt_embeds is not None,
    }
    for feature, asked in excluded.items():
        if asked:
            raise UnsupportedRequest(
                f"{feature} does not work on a reduced request, whose deeper layers see only a"
                f" part of the prompt; leave it out or ask for budget 1.0"
            )


def _check_trace(reduced: ReducedRequest, params: SamplingParams) -> None:
    if reduced.trace is not None and params.n > 1:
        raise UnsupportedRequest(
            f"{TRACE_KEY} does not work with n = {params.n}: the answers would leave their traces under"
            " one name; ask for one answer at a time, or leave the trace out"
        )


def _check_length(reduced: ReducedRequest, vllm_config: VllmConfig) -> None:
    """The range must fit one step, whatever decodes beside it, or it could wait for ever."""
    scheduler = vllm_config.scheduler_config
    step, name = scheduler.max_num_batched_tokens, "max_num_batched_tokens"
    if (scheduler.max_num_scheduled_tokens or step) < step:
        step, name = scheduler.max_num_scheduled_tokens, "max_num_scheduled_tokens"
    limit, name = step - scheduler.max_num_seqs + 1, f"{name} - max_num_seqs + 1"
    if 0 < scheduler.long_prefill_token_threshold < limit:
        limit, name = scheduler.long_prefill_token_threshold, "long_prefill_token_threshold"
    if reduced.longest_part <= limit:
        return
    if reduced.is_local:
        raise PromptTooLong(
            f"an image (or a frame) of the prompt takes {reduced.longest_part} tokens, and a reduced"
            f" request must run it in one step of at most {limit} ({name}); send smaller images, ask"
            f" for budget 1.0, or start the server with a larger --max-num-batched-tokens"
        )
    raise PromptTooLong(
        f"the prompt has {reduced.longest_part} tokens from its first vision token to its end,"
        f" and a request whose schedule looks at the question must run them in one step of at most"
        f" {limit} ({name}); ask for a schedule that can be reused, whose images run one by one, send"
        f" fewer or smaller images, ask for budget 1.0, or start the server with a larger"
        f" --max-num-batched-tokens"
    )
