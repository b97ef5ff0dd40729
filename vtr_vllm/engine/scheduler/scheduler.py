"""The scheduler: keeps the range of a reduced request in one step, and its KV out of the cache."""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request

from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.engine.common.config import SCHEDULER_CLS, model_geometry
from vtr_vllm.engine.common.request_view import read_request
from vtr_vllm.engine.scheduler import kv_usage
from vtr_vllm.engine.scheduler.kv_bands import BandManager
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.reduction.request import ReducedRequest


class Scheduler(AsyncScheduler):
    """vLLM's scheduler, async scheduling included; start with ``--scheduler-cls``."""

    __module__ = SCHEDULER_CLS.rpartition(".")[0]  # its public name, which vLLM is started with

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_layers = model_geometry(self.vllm_config).layers
        self.reduced: dict[str, ReducedRequest] = {}
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            if isinstance(manager.kv_cache_spec, BandSpec):
                if not isinstance(manager, BandManager):
                    raise ConfigurationError(
                        "the scheduler's process did not load VTR's plugin, so vLLM manages its"
                        " KV bands as ordinary groups; name vtr in VLLM_PLUGINS, or unset it"
                    )
                manager.bind(self.reduced)
        kv_usage.install()

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        if params is not None and request.request_id not in self.requests:
            reduced = read_request(
                params.extra_args, request.mm_features, request.prompt_token_ids, self._num_layers
            )
            if reduced is not None:
                self.reduced[request.request_id] = reduced
                self._end_block_hashes(request, reduced)
        super().add_request(request)

    def _end_block_hashes(self, request: Request, reduced: ReducedRequest) -> None:
        """Let the prefix cache see nothing of the request behind its first vision token.

        Without hashes such blocks are neither hit nor registered: their KV depends on the
        schedule and on the question, which an ordinary hash does not cover.
        """
        hash_block_size = self.kv_cache_manager.block_pool.hash_block_size
        del request.block_hashes[reduced.first_vision // hash_block_size :]
        request._block_hasher = None

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.reduced.pop(request.request_id, None)

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        """Roll a step back to before the first vision token unless it holds the whole range."""
        reduced = self.reduced.get(request.request_id)
        wanted = num_new_tokens
        if reduced is not None:
            wanted = reduced.clip(num_computed_tokens, num_new_tokens)
        scheduled = super()._try_schedule_encoder_inputs(
            request, num_computed_tokens, wanted, encoder_compute_budget, shift_computed_tokens
        )
        if reduced is None:
            return scheduled
        # An image that does not fit the encoder's budget or cache can still shorten the step.
        granted = reduced.clip(num_computed_tokens, scheduled[1])
        if granted == scheduled[1]:
            return scheduled
        # vLLM has pinned those of its images that are cached. Held while it waits for the others,
        # they could keep them out for ever: two such requests would wait for each other.
        self.encoder_cache_manager.free(request)
        return [], granted, encoder_compute_budget, [], []
