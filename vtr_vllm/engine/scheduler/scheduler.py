"""The scheduler: keeps each part of a reduced request in one step, and names its KV for the cache."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from vtr_vllm.engine.common import front_end
from vtr_vllm.engine.common.adaptive_counts import tell_front_end, told_by_worker
from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.common.request_view import VISION, read_request
from vtr_vllm.engine.scheduler import utilities
from vtr_vllm.engine.scheduler.block_names import BlockNames, signature
from vtr_vllm.engine.scheduler.idle_bands import skip_idle_bands
from vtr_vllm.engine.scheduler.kv_bands import bind_bands
from vtr_vllm.engine.scheduler.local_hits import follow_local_requests
from vtr_vllm.engine.scheduler.more_urgent import MoreUrgent
from vtr_vllm.engine_settings import SCHEDULER_CLS
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.reduction.request import ReducedRequest


class Scheduler(AsyncScheduler):
    """vLLM's scheduler, async scheduling included; start with ``--scheduler-cls``."""

    __module__ = SCHEDULER_CLS.rpartition(".")[0]  # its public name, which vLLM is started with
    _pause_state: PauseState  # vLLM's own
    waiting: RequestQueue  # likewise

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layer_bands = LayerBands.of(self.vllm_config)
        self.reduced: dict[str, ReducedRequest] = {}
        self._as_asked: dict[str, ReducedRequest] = {}
        """Adaptive ones before their counts were known: if they run again, these are the most."""
        coordinator = self.kv_cache_manager.coordinator
        bands = bind_bands(coordinator, self.reduced)
        follow_local_requests(coordinator, bands)
        skip_idle_bands(self.kv_cache_manager, bands)
        self._hash_function = get_hash_fn_by_name(
            self.vllm_config.cache_config.prefix_caching_hash_algo
        )
        self._awaits_front_end = front_end.has_settings(self.vllm_config)
        utilities.install()

    def greet(self) -> bool:
        """A front end of ours holds the settings: requests may come."""
        self._awaits_front_end = False
        return True

    def add_request(self, request: Request) -> None:
        if self._awaits_front_end:
            # Whoever sent it is no client that could be refused: the server stands open. It ends.
            raise ConfigurationError(front_end.no_front_end("no front end of VTR's has come up"))
        params = request.sampling_params
        if params is not None and request.request_id not in self.requests:
            reduced = read_request(
                params.extra_args, request.mm_features, request.prompt_token_ids, self._layer_bands
            )
            if reduced is not None:
                self.reduced[request.request_id] = reduced
                self._set_block_hashes(request, reduced)
        super().add_request(request)

    def _set_block_hashes(self, request: Request, reduced: ReducedRequest) -> None:
        """Name the blocks of a local request; let the prefix cache see nothing else of a reduced one
        behind its first vision token.

        Without hashes such blocks are neither hit nor registered: their KV depends on the
        schedule and on the question, which an ordinary hash does not cover.
        """
        hash_block_size = self.kv_cache_manager.block_pool.hash_block_size
        if reduced.is_local and self.kv_cache_manager.enable_caching:
            params = request.sampling_params
            assert params is not None
            assert params.extra_args is not None
            named_by = signature(params.extra_args)
            request.block_hashes = BlockNames(
                request, reduced, named_by, hash_block_size, self._hash_function
            )
            return
        del request.block_hashes[reduced.first_vision // hash_block_size :]
        request._block_hasher = None

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.reduced.pop(request.request_id, None)
        self._as_asked.pop(request.request_id, None)
        if isinstance(request.block_hashes, BlockNames):
            request.block_hashes = []  # they know the request: both would wait for the garbage collector

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """vLLM's; blocks that adaptive cuts left empty are the answer's, and the front end is told."""
        counts = told_by_worker(model_runner_output)
        for request_id, found in counts.items():
            self._note_counts(request_id, found)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if counts:
            for client in outputs.values():
                for output in client.outputs:
                    if output.request_id in counts:
                        tell_front_end(output, counts[output.request_id])
        return outputs

    def _note_counts(self, request_id: str, counts: Sequence[int]) -> None:
        request = self.requests.get(request_id)
        # Who was preempted meanwhile, or is over, has no blocks; who runs again by now has others.
        if (
            request is None
            or request.status != RequestStatus.RUNNING
            or request.num_stale_output_tokens
        ):
            return
        asked = self._as_asked.setdefault(request_id, self.reduced[request_id])
        self.reduced[request_id] = asked.with_plan(asked.plan.with_counts(counts))

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """vLLM's; an adaptive request is counted anew when it runs again."""
        asked = self._as_asked.pop(request.request_id, None)
        if asked is not None:
            self.reduced[request.request_id] = asked
        super()._preempt_request(request, *args, **kwargs)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """vLLM's; where a part waits, nobody is admitted (``_admit_nobody_before``)."""
        if self.policy == SchedulingPolicy.PRIORITY:
            self._run_in_order_of_urgency()
        pause, queue = self._pause_state, self.waiting
        try:
            return super().schedule(throttle_prefills)
        finally:
            self._pause_state, self.waiting = pause, queue

    def _run_in_order_of_urgency(self) -> None:
        """Let whom vLLM preempts stand last: the least urgent request, which then has nothing in this step.

        What a step gives is named in the prefix cache and noted as encoded at once. vLLM takes back the
        tokens of who is preempted after that, and neither of these, though the step computes nothing of
        them. Of equals, such as answers to one prompt, it takes the first, so here none are equal.
        """
        self.running.sort(key=lambda request: (request.priority, request.arrival_time))
        for before, request in pairwise(self.running):
            if request.priority == before.priority:
                later = math.nextafter(before.arrival_time, math.inf)
                request.arrival_time = max(request.arrival_time, later)

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        """Roll a step back to before a part of which it would hold only some positions."""
        schedule = partial(
            super()._try_schedule_encoder_inputs,
            request,
            num_computed_tokens,
            encoder_compute_budget=encoder_compute_budget,
            shift_computed_tokens=shift_computed_tokens,
        )
        reduced = self.reduced.get(request.request_id)
        if reduced is None:
            return schedule(num_new_tokens)
        scheduled = schedule(reduced.clip(num_computed_tokens, num_new_tokens))
        # An image that does not fit the encoder's budget or cache can still shorten the step.
        granted = reduced.clip(num_computed_tokens, scheduled[1])
        if granted < scheduled[1]:
            scheduled = schedule(granted)
        end = num_computed_tokens + scheduled[1]
        if reduced.parts_done(end) < len(reduced.parts):
            self._unpin(request, reduced, end)
            waits = scheduled[1] == 0 < num_new_tokens
            if waits and request.status == RequestStatus.RUNNING:
                self._admit_nobody_before(request)
        return scheduled

    def _unpin(self, request: Request, reduced: ReducedRequest, end: int) -> None:
        """Let go of cached images of which no part is done at ``end``; vLLM pins what a step sees.

        Held while their part waits for other images of it, they could keep these out for ever: two
        such requests would wait for each other.
        """
        done = reduced.parts_done(end)
        begun = reduced.parts[done - 1].start if done else -1
        for index in tuple(self.encoder_cache_manager.get_cached_input_ids(request)):
            feature = request.mm_features[index]
            position = feature.mm_position
            if feature.modality not in VISION:  # its positions may be read one by one, in this step
                continue
            if position.offset + position.length > end and position.offset > begun:
                self.encoder_cache_manager.free_encoder_input(request, index)

    def _admit_nobody_before(self, waiting: Request) -> None:
        """For this step, leave the queue alone: a running request's range did not fit.

        vLLM passes over a running request that gets nothing and admits others, whose images may
        take the encoder's cache again before the range, which needs all of its images at once, gets
        its turn: for ever, under load. At the head of the queue the same request would let nobody
        pass; so it is here. More urgent requests still go first.
        """
        if self._pause_state != PauseState.UNPAUSED:
            return
        if self.policy == SchedulingPolicy.PRIORITY:
            self.waiting = MoreUrgent(self.waiting, waiting.priority)
        else:
            self._pause_state = PauseState.PAUSED_NEW
