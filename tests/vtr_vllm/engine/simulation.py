"""The real scheduler without a model: every step answers each request that is due with one token.

Time is counted in steps. ``lag`` steps are in flight when the next is scheduled: 0 is synchronous,
1 is vLLM's asynchronous scheduling.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from tests.vtr_vllm.engine.support import BLOCK
from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.engine.common.config import band_starts, model_geometry
from vtr_vllm.engine.scheduler.kv_bands import register_band_spec
from vtr_vllm.engine.scheduler.scheduler import Scheduler
from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS
from vtr_vllm.schedules import RankRule, to_wire

IMAGE = 64
"""Vision tokens of an image of the tiny checkpoint."""


def make_scheduler(checkpoint: Path, num_blocks: int = 4096, **arguments: Any) -> Scheduler:
    """A scheduler as the engine makes it, of ``num_blocks`` KV blocks in bands."""
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "block_size": BLOCK,
        "max_model_len": 1024,
        "limit_mm_per_prompt": {"image": 8},
        "worker_cls": WORKER_CLS,
        "scheduler_cls": SCHEDULER_CLS,
        "disable_log_stats": True,
    }
    config = EngineArgs(model=str(checkpoint), **(defaults | arguments)).create_engine_config()
    config.cache_config.num_gpu_blocks = num_blocks
    register_band_spec()
    groups = band_groups(model_geometry(config).layers)
    return Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks, kv_cache_tensors=[], kv_cache_groups=groups),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        hash_block_size=BLOCK,
    )


def band_groups(layers: int) -> list[KVCacheGroupSpec]:
    """A KV-cache group of each band, as vLLM makes them."""
    starts = band_starts(layers, None)
    return [
        KVCacheGroupSpec(
            [f"layers.{layer}" for layer in range(first, end)],
            BandSpec(
                block_size=BLOCK,
                num_kv_heads=2,
                head_size=32,
                dtype=torch.float32,
                band=band,
                first_layer=first,
            ),
        )
        for band, (first, end) in enumerate(zip(starts, (*starts[1:], layers), strict=True))
    ]


@dataclass(frozen=True)
class Item:
    """A multimodal item of a prompt: ``lead`` tokens without an embedding, then ``length`` with one."""

    name: str = ""
    """Items of one name are the same item; "" is one of its own."""
    modality: str = "image"
    length: int = IMAGE
    lead: int = 0


class Simulation:
    """Runs a scheduler step by step, and checks that a worker could follow every step."""

    def __init__(self, scheduler: Scheduler, lag: int = 1) -> None:
        self.scheduler = scheduler
        self.lag = lag
        self.steps = 0
        self.admitted: dict[str, int] = {}
        """Request -> the step that scheduled its first token."""
        self.answered: dict[str, int] = {}
        """Request -> the step that scheduled the last token of its prompt."""
        self.preempted: list[str] = []
        self._in_flight: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
        self._encoded: set[str] = set()
        """What the worker's encoder cache has."""
        self._hasher = kv_cache_utils.get_request_block_hasher(BLOCK, sha256)
        self._rng = np.random.default_rng(0)
        self._made = 0
        kv_cache_utils.init_none_hash(sha256)

    def add(
        self,
        *parts: int | Item,
        keep: tuple[float, ...] | None = None,
        rule: str = "last",
        max_tokens: int = 4,
        priority: int = 0,
    ) -> str:
        """Add a request of ``parts``, in which a number is so many text tokens; returns its id.

        It runs reduced where ``keep`` has a keep rate per layer; ``rule`` ranks at each cut.
        """
        self._made += 1
        name = f"request-{self._made}"
        ids: list[int] = []
        features = []
        for index, part in enumerate(parts):
            if isinstance(part, int):
                ids += self._rng.integers(4, 250, part).tolist()
                continue
            item = part.name or f"{name}-{index}"
            mask = torch.arange(part.lead + part.length) >= part.lead
            place = PlaceholderRange(len(ids), len(mask), mask if part.lead else None)
            features.append(MultiModalFeatureSpec(None, part.modality, item, place, item))
            ids += [3] * len(mask)
        wire = None
        if keep is not None:
            cuts = sum(b < a for a, b in zip((1.0, *keep), keep, strict=False))
            wire = to_wire(keep, [RankRule.parse(rule)] * cuts)
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, extra_args=wire)
        self.scheduler.add_request(
            Request(
                request_id=name,
                prompt_token_ids=ids,
                sampling_params=params,
                pooling_params=None,
                mm_features=features,
                arrival_time=float(self._made),
                priority=priority,
                block_hasher=self._hasher,
            )
        )
        return name

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def step(self) -> SchedulerOutput:
        """Schedule one step, and hand the scheduler the answer to the step ``lag`` before it."""
        requests = self.scheduler.requests
        output = self.scheduler.schedule()
        self.steps += 1
        self.preempted += output.preempted_req_ids or ()
        names = list(output.num_scheduled_tokens)
        self._check(output)
        for name in names:
            self.admitted.setdefault(name, self.steps)
            if requests[name].num_computed_tokens >= requests[name].num_prompt_tokens:
                self.answered.setdefault(name, self.steps)
        tokens: list[list[int]] = [[] if requests[n].is_prefill_chunk else [7] for n in names]
        answer = ModelRunnerOutput(names, {n: i for i, n in enumerate(names)}, tokens)
        self._in_flight.append((output, answer))
        if len(self._in_flight) > self.lag:
            self.scheduler.update_from_output(*self._in_flight.popleft())
        return output

    def run(self, most: int) -> None:
        """Run until every request is finished; fails after ``most`` more steps."""
        end = self.steps + most
        while self.scheduler.has_unfinished_requests():
            assert self.steps < end, f"{len(self.scheduler.requests)} requests hang"
            self.step()
        while self._in_flight:
            self.scheduler.update_from_output(*self._in_flight.popleft())

    def _check(self, output: SchedulerOutput) -> None:
        """No part is split, and the worker has every embedding that the step reads."""
        self._encoded -= set(output.free_encoder_mm_hashes)
        for name, indices in output.scheduled_encoder_inputs.items():
            features = self.scheduler.requests[name].mm_features
            self._encoded |= {features[index].identifier for index in indices}
        for name, scheduled in output.num_scheduled_tokens.items():
            request = self.scheduler.requests[name]
            end = request.num_computed_tokens
            if reduced := self.scheduler.reduced.get(name):
                reduced.parts_of_step(end - scheduled, scheduled)
            for feature in request.mm_features:
                place = feature.mm_position
                first, last = (
                    min(max(position - place.offset, 0), place.length)
                    for position in (end - scheduled, end)
                )
                read = place.get_embeds_indices_in_range(first, last)
                assert read[0] == read[1] or feature.identifier in self._encoded, feature
