"""What the engine tests share: starting an engine, making prompts, reading logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm import LLM, SamplingParams

from tests.reference.scores import image_id
from tests.tiny import TinyShape, random_image
from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS
from vtr_vllm.schedules import TRACE_KEY, RankRule, to_wire

BLOCK = 32


def start(model: Path, **arguments: Any) -> LLM:
    """An in-process engine with VTR, fp32, every logit readable."""
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": BLOCK,
        "max_model_len": 1024,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 32,
        "limit_mm_per_prompt": {"image": 4},
        "worker_cls": WORKER_CLS,
        "scheduler_cls": SCHEDULER_CLS,
        "logprobs_mode": "raw_logits",
        "max_logprobs": -1,
        "disable_log_stats": True,
    }
    if torch.cuda.is_available():  # leave room for what runs beside
        defaults |= {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.05}
    return LLM(model=str(model), **(defaults | arguments))


@dataclass(frozen=True)
class Case:
    """One request: its prompt and, when it is reduced, its keep curve."""

    text: str
    images: tuple[Image.Image, ...] = ()
    keep: tuple[float, ...] | None = None
    rules: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    trace: str | None = None
    floor: float = 0.0

    @property
    def prompt(self) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt": self.text}
        if self.images:
            prompt["multi_modal_data"] = {"image": list(self.images)}
            # So that a reference can draw what vLLM draws by an image's name.
            prompt["multi_modal_uuids"] = {"image": [image_id(image) for image in self.images]}
        return prompt

    def params(self, max_tokens: int, **options: Any) -> SamplingParams:
        wire: dict[str, Any] = {}
        if self.keep is not None:
            wire |= to_wire(self.keep, [RankRule.parse(rule) for rule in self.rules], self.floor)
        if self.trace is not None:
            wire[TRACE_KEY] = self.trace
        given = {"temperature": 0.0, "ignore_eos": True, "max_tokens": max_tokens}
        return SamplingParams(extra_args=wire or None, **(given | self.options | options))


def words(seed: int, length: int) -> str:
    """``length`` characters, each one token."""
    letters = np.random.default_rng(seed).choice(list("abcdefghijklmnop "), length)
    return "".join(letters)


def picture(seed: int) -> Image.Image:
    return random_image(TinyShape(), seed)


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def logits(output: Any, vocab: int) -> np.ndarray:
    """[tokens, vocab] raw logits of a request that ran with ``logprobs=-1``."""
    steps = output.outputs[0].logprobs
    table = np.full((len(steps), vocab), np.nan)
    for row, step in zip(table, steps, strict=True):
        for token, entry in step.items():
            row[token] = entry.logprob
    return table


def note_preemptions(llm: LLM) -> list[str]:
    """The list that the ids of preempted requests will be in."""
    core: Any = llm.llm_engine.engine_core
    scheduler = core.engine_core.scheduler
    stock = scheduler._preempt_request
    preempted: list[str] = []

    def counted(request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.append(request.request_id)
        stock(request, *args, **kwargs)

    scheduler._preempt_request = counted
    return preempted
