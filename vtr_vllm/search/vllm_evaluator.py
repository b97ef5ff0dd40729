"""The in-process backend: one vLLM engine with VTR, driven step by step.

The answers to a list of tasks are a function of the list alone: one process, so nothing depends on
timing; of an earlier list nothing is kept that depends on it. A search that is resumed therefore sees
what the uninterrupted one saw.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any

import vllm
from PIL import Image
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.multimodal.cache.base import MultiModalCache

from vtr_vllm.adaptive import Prompt
from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.common.registers import registers_of
from vtr_vllm.engine.frontend.admission import Admitted, collect
from vtr_vllm.engine.frontend.first_tokens import FirstTokens, collect_first_tokens
from vtr_vllm.engine.scheduler.encoder_room import keep_encoded
from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS
from vtr_vllm.errors import EvaluationFailed, VTRError
from vtr_vllm.own_models import OWN_MODELS
from vtr_vllm.schedules import ModelGeometry, RankRule, to_wire
from vtr_vllm.search.answers import (
    TOP_LOGPROBS,
    Answer,
    Batch,
    EngineOptions,
    GeneratedToken,
    Task,
    messages,
)
from vtr_vllm.search.calibration import Item
from vtr_vllm.search.candidates import Candidate, scaled, unreduced
from vtr_vllm.search.encoded_images import EncodedImages

_PROMPTS_GB = 0.5
"""Of rendered prompts per engine: preprocessed images, most of it."""
_ENCODED_BYTES = 256 << 20
"""Of encoded images per engine, where it runs."""
_OWN_ARGS: Mapping[str, Any] = {
    "max_model_len": 512,
    "block_size": 32,
    "dtype": "float32",  # not every CPU computes in bf16
    "kv_cache_memory_bytes": 1 << 30,
}


class VLLMEvaluator:
    """Evaluates in this process; raises what vLLM raises when the engine cannot start."""

    def __init__(self, options: EngineOptions) -> None:
        # one process: a scheduler that raced with the front end would make batches, and with them
        # rounding, depend on timing
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_PLUGINS"] = "vtr"

        own = OWN_MODELS.get(options.model)
        if own is not None:
            own.check()
        arguments: dict[str, Any] = {
            "model": options.model if own is None else str(own.checkpoint),
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "max_num_seqs": 64,
            "max_logprobs": TOP_LOGPROBS,
            "limit_mm_per_prompt": {"image": options.images},
            "disable_log_stats": True,
            "mm_processor_cache_gb": _PROMPTS_GB,  # and again with the prompts
        }
        arguments |= {**({} if own is None else _OWN_ARGS), **options.engine_args}
        self._llm = vllm.LLM(**arguments, worker_cls=WORKER_CLS, scheduler_cls=SCHEDULER_CLS)
        self._llm.llm_engine.reset_mm_cache()  # which waits for what fills it at the start
        config = self._llm.model_config
        width = config.get_inputs_embeds_size() * config.dtype.itemsize
        room = keep_encoded(self._llm.llm_engine, _ENCODED_BYTES // width)
        forget = self._llm.llm_engine.reset_encoder_cache
        self._images = EncodedImages(room, self._encode, forget)
        self._rendered = MultiModalCache.get_lru_cache(_PROMPTS_GB, dict)
        self._max_tokens = options.max_tokens
        self._model = options.model
        self._engine_args = json.dumps(dict(options.engine_args), sort_keys=True)

    @cached_property
    def geometry(self) -> ModelGeometry:
        """The geometry of the model that was loaded."""
        config = self._llm.model_config.hf_text_config.to_dict()
        return ModelGeometry.from_config(config)

    @cached_property
    def versions(self) -> dict[str, str]:
        """Releases, model, its weights, dtype, and whatever else was asked of the engine."""
        asked = {"engine_args": self._engine_args} if self._engine_args != "{}" else {}
        config = self._llm.model_config
        digest = checkpoint_digest(config.model, config.revision)
        asked |= {} if digest is None else {"checkpoint": digest}
        return asked | {
            "model": self._model,
            "dtype": str(config.dtype).removeprefix("torch."),
            "max_tokens": str(self._max_tokens),
            "vtr": version("vtr-vllm"),
            "vllm": vllm.__version__,
        }

    @property
    def has_cls(self) -> bool:
        """Whether the vision tower is CLIP's."""
        tower = getattr(self._llm.model_config.hf_config, "vision_config", None)
        return getattr(tower, "model_type", None) == "clip_vision_model"

    @property
    def band_starts(self) -> tuple[int, ...]:
        """First layers of the KV bands, by the engine's own setting."""
        return LayerBands.of(self._llm.llm_engine.vllm_config).starts

    def run(self, tasks: Sequence[Task]) -> Batch:
        """Answer every task; tasks of one item should stand together.

        Raises EvaluationFailed when one is refused; the others are dropped then.
        """
        return self._attempt(tasks, self._max_tokens)[0]

    def prompts(self, items: Sequence[Item]) -> list[Prompt]:
        """As admission sees them, of requests for one token each."""
        candidate = unreduced(self.geometry)
        _, admitted = self._attempt([Task(candidate, item) for item in items], max_tokens=1)
        return [admitted[index].prompt for index in range(len(items))]

    def _attempt(self, tasks: Sequence[Task], max_tokens: int) -> tuple[Batch, dict[int, Admitted]]:
        try:
            return self._run(tasks, max_tokens)
        except (VTRError, VLLMClientError, ValueError) as err:
            engine = self._llm.llm_engine
            engine.abort_request(["image", *(str(index) for index in range(len(tasks)))])
            self._images.forget()
            if isinstance(err, EvaluationFailed):
                raise
            raise EvaluationFailed(f"the engine failed: {err}") from err

    def _run(self, tasks: Sequence[Task], max_tokens: int) -> tuple[Batch, dict[int, Admitted]]:
        engine = self._llm.llm_engine
        self._images.provide(tasks)
        room = engine.vllm_config.scheduler_config.max_num_seqs
        waiting = deque(enumerate(tasks))
        admitted: dict[int, Admitted] = {}
        answers: dict[int, Answer] = {}
        firsts: dict[int, FirstTokens] = {}
        busy = steps = 0
        while len(answers) < len(tasks):
            # as many again as can run, so that the scheduler never lacks one
            while waiting and engine.get_num_unfinished_requests() < 2 * room:
                index, task = waiting.popleft()
                with _naming(task.item), collect() as each, collect_first_tokens() as first:
                    sampling = _sampling(task.candidate, max_tokens)
                    engine.add_request(str(index), self._prompt(task), sampling)
                admitted[index], firsts[index] = each[0], first
            busy += min(engine.get_num_unfinished_requests(), room)
            steps += 1
            for output in engine.step():
                if output.finished:
                    index = int(output.request_id)
                    found = firsts.pop(index).counts(str(index))
                    answers[index] = _answer(output, admitted[index].n_vision, found)
        batch = Batch(tuple(answers[i] for i in range(len(tasks))), busy, steps * room)
        return batch, admitted

    def close(self) -> None:
        """Nothing: the engine ends with its process."""

    def _prompt(self, task: Task) -> Any:
        """The task's prompt, rendered once."""
        key = (task.item, task.candidate.image_scale)
        found = self._rendered.get(key)
        if found is None:
            images = [scaled(image, key[1]) for image in task.item.load_images()]
            found = self._render(messages(task.item, _parts(images)))
            if MultiModalCache.get_item_size(found) <= self._rendered.capacity:
                self._rendered[key] = found
        return found

    def _render(self, chat: list[Any]) -> Any:
        """A prompt with all of its images: vLLM would leave out those that its cache holds by now, and
        that it may have dropped when the prompt is asked about once more."""
        self._llm.llm_engine.renderer.clear_mm_cache()
        return self._llm._preprocess_chat_one(chat)

    def _encode(self, task: Task, place: int) -> int:
        """Encode one image of a task in a step of its own; its vision tokens."""
        engine = self._llm.llm_engine
        # Of the decoder as little as can be: it keeps no vision token from layer 0 on.
        rule = "registers" if registers_of(self._llm.model_config.hf_config) else "prefix"
        nothing = Candidate((0.0,) * self.geometry.layers, (RankRule.parse(rule),))
        with _naming(task.item), collect() as admitted:
            image = scaled(task.item.load_images()[place], task.candidate.image_scale)
            content = [*_parts([image]), {"type": "text", "text": task.item.question}]
            prompt = self._render([{"role": "user", "content": content}])
            engine.add_request("image", prompt, _sampling(nothing, max_tokens=1))
        while engine.has_unfinished_requests():
            engine.step()
        return admitted[0].n_vision


@contextmanager
def _naming(item: Item) -> Iterator[None]:
    """Say of which item it was that the engine refused something."""
    try:
        yield
    except (VTRError, VLLMClientError, ValueError) as err:  # vLLM refuses with either
        raise EvaluationFailed(
            f"the engine refused item {item.id} (line {item.line} of its file): {err}"
        ) from err


def _parts(images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    return [{"type": "image_pil", "image_pil": image} for image in images]


def _sampling(candidate: Candidate, max_tokens: int) -> Any:
    wire = to_wire(candidate.keep, candidate.rules) if candidate.reduces else {}
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, logprobs=TOP_LOGPROBS, extra_args=wire
    )


def _answer(output: Any, n_vision: int, found: tuple[int, ...] | None) -> Answer:
    completion = output.outputs[0]
    steps = tuple(
        GeneratedToken(
            step[token].decoded_token,
            # of tokens with the same text the likeliest, which comes first
            {entry.decoded_token: entry.logprob for entry in reversed(step.values())},
        )
        for token, step in zip(completion.token_ids, completion.logprobs, strict=True)
    )
    n_prompt = len(output.prompt_token_ids)
    return Answer(completion.text, steps, n_vision, n_prompt - n_vision, found)
