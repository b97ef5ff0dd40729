"""The seams: what we override in vLLM, and read of it, is still there and still called.

vLLM promises no stability for any of it. When the pin is raised, what fails here says where to
look; the engine tests say whether it still works.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType

import pytest
import torch
import vllm.envs as envs
from cachetools import Cache
from vllm import connections, lora
from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled
from vllm.config import CacheConfig, SchedulerConfig, VllmConfig
from vllm.distributed.parallel_state import GroupCoordinator
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.scale_out.token_in_token_out.serving import ServingTokens
from vllm.forward_context import ForwardContext
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.attention import set_default_quant_scales
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding
from vllm.model_executor.models import (
    clip,
    glm4,
    glm4_moe,
    internlm2,
    llama,
    llava,
    mistral,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_vl,
    qwen3_vl_moe,
    registry,
)
from vllm.model_executor.models.interfaces import SupportsMultiModal, supports_multimodal
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.multimodal.media import MediaConnector
from vllm.multimodal.registry import MultiModalRegistry
from vllm.multimodal.utils import get_mm_features_in_window
from vllm.plugins.endpoint_plugins import interface as endpoint_plugins
from vllm.renderers import embed_utils
from vllm.renderers.base import BaseRenderer
from vllm.renderers.hf import HfRenderer
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.core.sched.scheduler import Scheduler as StockScheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient, InprocClient, SyncMPClient
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.engine.output_processor import OutputProcessor, RequestState
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.metrics.loggers import (
    AggregateStatLoggerBase,
    StatLoggerManager,
    load_stat_logger_plugin_factories,
)
from vllm.v1.metrics.stats import (
    IterationStats,
    PrefillStats,
    PromptTokenStats,
    RequestStateStats,
    SchedulerStats,
)
from vllm.v1.request import Request
from vllm.v1.worker import cpu_worker, gpu_model_runner, gpu_worker
from vllm.v1.worker.block_table import BlockTable
from vllm.v1.worker.gpu import cudagraph_utils, model_states
from vllm.v1.worker.gpu import input_batch as input_batch_v2
from vllm.v1.worker.gpu import model_runner as model_runner_v2
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.utils import AttentionGroup

from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.engine.common.front_end import GREET
from vtr_vllm.engine.common.kv_report import UTILITY
from vtr_vllm.engine.common.supported_models import (
    CLS_ARCHITECTURES,
    SUPPORTED_ARCHITECTURES,
    SUPPORTED_DECODERS,
)
from vtr_vllm.engine.frontend.load_logger import LoadLogger
from vtr_vllm.engine.scheduler.kv_bands import BandManager
from vtr_vllm.engine.scheduler.scheduler import Scheduler
from vtr_vllm.engine.worker import families
from vtr_vllm.engine.worker.model import ReductionMixin
from vtr_vllm.engine.worker.runner_v1 import ReducingRunner
from vtr_vllm.engine.worker.runner_v2 import ReducingModelState
from vtr_vllm.engine.worker.tower import ClsReductionMixin
from vtr_vllm.engine.worker.worker import Runner, Worker

WORKER_METHODS = {
    "vtr_status",
    "vtr_counters",
    "vtr_take_trace",
    "_vtr_reduction",
    "_with_counts",
}

# Our class, vLLM's class, and the methods of ours that vLLM does not know.
OVERRIDES = [
    (
        Scheduler,
        AsyncScheduler,
        {
            "_set_block_hashes",
            "_run_in_order_of_urgency",
            "_unpin",
            "_admit_nobody_before",
            "_note_counts",
            "greet",
        },
    ),
    (
        BandManager,
        FullAttentionManager,
        {
            "bind",
            "stored_tokens",
            "_has_room",
            "cache_local_blocks",
            "held_for",
            "room",
            "next_full",
            "_found",
            "_register",
        },
    ),
    (BandSpec, FullAttentionSpec, set()),
    (
        ReducingRunner,
        GPUModelRunner,
        {"reduction", "_step_request", "_reduced_request", "_band_tables"},
    ),
    (ReducingModelState, DefaultModelState, {"reduction", "_step_requests", "_capture"}),
    (ReductionMixin, llava.LlavaForConditionalGeneration, {"get_model_state_cls"}),
    (ClsReductionMixin, llava.LlavaForConditionalGeneration, set()),
    (Worker, gpu_worker.Worker, WORKER_METHODS),
    (Worker, cpu_worker.CPUWorker, WORKER_METHODS),
    (LoadLogger, AggregateStatLoggerBase, set()),
]


def own_methods(cls: type) -> set[str]:
    """Methods and properties that a class body defines, without what a dataclass makes."""
    made = {"__eq__", "__hash__", "__repr__", "__replace__", "__setattr__", "__delattr__"}
    if dataclasses.is_dataclass(cls):
        made |= {"__init__"}
    kinds = FunctionType | classmethod | property
    return {name for name, value in vars(cls).items() if isinstance(value, kinds)} - made


@pytest.mark.parametrize(
    ("ours", "stock", "name"),
    [
        (ours, stock, name)
        for ours, stock, known in OVERRIDES
        for name in sorted(own_methods(ours) - known)
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_what_we_override_exists_and_takes_our_parameters(
    ours: type, stock: type, name: str
) -> None:
    """Every call of vLLM's form fits ours, and every parameter that we name is one of vLLM's."""
    assert hasattr(stock, name), f"{stock.__name__} has no {name}: ours is never called"
    mine = inspect.signature(getattr(ours, name)).parameters
    theirs = inspect.signature(getattr(stock, name)).parameters
    kinds = {parameter.kind for parameter in mine.values()}
    named = [n for n, p in mine.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not any(p.kind is p.VAR_KEYWORD for p in theirs.values()):
        assert set(named) <= set(theirs)
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        assert set(theirs) <= set(named)
    positional = [n for n in named if mine[n].kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == list(theirs)[: len(positional)], "same place in the order"


@pytest.mark.parametrize(
    ("ours", "known"),
    [(ours, known) for ours, _, known in OVERRIDES],
    ids=[f"{ours.__name__}-{stock.__name__}" for ours, stock, _ in OVERRIDES],
)
def test_methods_of_our_own_shadow_nothing(ours: type, known: set[str]) -> None:
    stock = next(s for o, s, _ in OVERRIDES if o is ours)
    assert known <= set(vars(ours))
    assert {name for name in known if hasattr(stock, name)} == set()


def test_our_classes_stand_before_those_of_vllm() -> None:
    assert Runner.__mro__.index(ReducingRunner) < Runner.__mro__.index(GPUModelRunner)
    assert issubclass(Scheduler, AsyncScheduler), "or async scheduling is switched off"


def names_in(code: CodeType) -> set[str]:
    """Every name and text that a function's code uses, its inner functions included."""
    found = {*code.co_names, *code.co_varnames, *code.co_freevars}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= names_in(constant)
        elif isinstance(constant, str | tuple):
            found |= {constant} if isinstance(constant, str) else {*map(str, constant)}
    return found


CALLS: list[tuple[Callable, str]] = [
    (StockScheduler.schedule, "_try_schedule_encoder_inputs"),
    (StockScheduler._free_request, "_free_blocks"),
    (StockScheduler.schedule, "_preempt_request"),
    (EngineCore.step, "update_from_output"),
    (EngineCore.step_with_batch_queue, "update_from_output"),
    (EngineCore.step, "execute_model"),
    (EngineCore.step, "sample_tokens"),
    (LLMEngine.step, "process_outputs"),
    (AsyncLLM._run_output_handler, "process_outputs"),
    (KVCacheCoordinator.get_num_blocks_to_allocate, "get_num_blocks_to_allocate"),
    (KVCacheCoordinator.allocate_new_blocks, "allocate_new_blocks"),
    (KVCacheCoordinator.cache_blocks, "cache_blocks"),
    (KVCacheManager.get_computed_blocks, "find_longest_cache_hit"),
    (KVCacheManager.get_computed_blocks, "emit_cached_block_events"),
    (KVCacheManager.allocate_slots, "cache_blocks"),
    (StockScheduler.schedule, "allocate_slots"),
    (KVCacheManager.create_kv_cache_blocks, "empty_kv_cache_blocks"),
    (KVCacheCoordinator.allocate_new_computed_blocks, "add_local_computed_blocks"),
    (FullAttentionManager.add_local_computed_blocks, "_has_partial_local_hit"),
    (FullAttentionManager.allocate_new_blocks, "_apply_cow"),
    (StockScheduler.schedule, "take_kv_cache_block_copies"),
    (StockScheduler.schedule, "new_step_starts"),
    (KVCacheCoordinator.new_step_starts, "new_step_starts"),
    (GPUModelRunner._update_states, "kv_cache_block_copies"),
    (model_runner_v2.GPUModelRunner.update_requests, "kv_cache_block_copies"),
    (Request.update_block_hashes, "block_hashes"),
    (KVCacheCoordinator.free, "free"),
    (FullAttentionManager.free, "pop_blocks_for_free"),
    (KVCacheCoordinator.pop_blocks_for_free, "pop_blocks_for_free"),
    (EngineCore.step, "schedule"),
    (EngineCore.step_with_batch_queue, "schedule"),
    (kv_cache_utils.is_kv_cache_spec_uniform, "merge"),
    (kv_cache_utils._get_kv_cache_groups_uniform_page_size, "merge"),
    (GPUModelRunner._update_states, "_on_request_state_removed"),
    (GPUModelRunner.execute_model, "_build_attention_metadata"),
    (gpu_worker.Worker.initialize_from_config, "initialize_kv_cache"),
    (gpu_model_runner.GPUModelRunner.get_kv_cache_spec, "get_kv_cache_spec"),
    (model_states.resolve_model_state_cls, "get_model_state_cls"),
    (model_runner_v2.GPUModelRunner.initialize_kv_cache, "initialize_kv_cache"),
    (model_runner_v2.GPUModelRunner.add_requests, "add_request"),
    (model_runner_v2.GPUModelRunner._remove_request, "remove_request"),
    (model_runner_v2.GPUModelRunner.execute_model, "prepare_attn"),
    (cudagraph_utils.prepare_inputs_to_capture, "prepare_attn"),
    (cpu_worker.CPUWorker.init_device, "CPUModelRunner"),
    (gpu_worker.Worker.init_device, "_init_workspace_and_model_runner"),
    (gpu_worker.Worker._init_workspace_and_model_runner, "_make_model_runner"),
    (gpu_worker.Worker._make_model_runner, "vllm.v1.worker.gpu_model_runner"),
    (StatLoggerManager.record, "record"),
    (StatLoggerManager.__init__, "engine_indexes"),
    (AsyncLLM.__init__, "load_stat_logger_plugin_factories"),
    (load_stat_logger_plugin_factories, "STAT_LOGGER_PLUGINS_GROUP"),
    (LLMEngine.add_request, "process_inputs"),
    (AsyncLLM.add_request, "process_inputs"),
    (AsyncLLM.add_request, "add_request"),
    (AsyncLLM._add_request, "add_request"),
    (BeamSearchOnlineMixin.beam_search, "-beam-"),
    (MultiModalRegistry.get_processing_info, "_create_processing_info"),
    (MultiModalRegistry._create_processing_info, "_processor_factory"),
    (HfRenderer._process_tokens_async, "_process_tokens_async"),
    (BaseRenderer._process_singleton_async, "_process_tokens_async"),
    (BaseRenderer._process_multimodal, "_process_mm_uuids"),
    (ServingTokens.serve_tokens, "mm_kwargs_from_features"),
    (embed_utils.safe_load_prompt_embeds, "torch"),
    (MediaConnector.load_from_url_async, "async_get_bytes"),
    (connections.HTTPConnection.get_async_response, "get_async_client"),
]


@pytest.mark.parametrize(
    ("caller", "name"), CALLS, ids=[f"{caller.__qualname__}-{name}" for caller, name in CALLS]
)
def test_vllm_still_calls_what_we_override(caller: Callable, name: str) -> None:
    assert name in names_in(inspect.unwrap(caller).__code__)


def test_both_queues_of_the_scheduler_ask_for_encoder_inputs() -> None:
    """A waiting and a running request alike: a chunk of either could split a range."""
    assert inspect.getsource(StockScheduler.schedule).count("_try_schedule_encoder_inputs(") == 2


def test_the_encoder_has_room_for_whatever_a_step_holds() -> None:
    """So a range that fits a step, which admission asks, has room for all of its images."""
    config = SchedulerConfig(
        max_model_len=512, is_encoder_decoder=False, max_num_batched_tokens=777
    )
    assert config.encoder_cache_size == config.max_num_encoder_input_tokens == 777


def test_a_pause_set_while_the_running_are_scheduled_keeps_the_queue_out() -> None:
    """The queue is let in, request by request, after the running ones and while nothing is paused."""
    running, _, waiting = inspect.getsource(StockScheduler.schedule).partition(
        "# Next, schedule the WAITING requests."
    )
    assert running.count("_try_schedule_encoder_inputs(") == 1
    assert "self._pause_state == PauseState.UNPAUSED:\n" in waiting


@pytest.mark.parametrize(
    ("cls", "attributes"),
    [
        (StockScheduler, ["vllm_config", "requests", "kv_cache_manager", "encoder_cache_manager"]),
        (StockScheduler, ["_pause_state", "policy", "waiting"]),
        (KVCacheManager, ["coordinator", "block_pool"]),
        (KVCacheCoordinator, ["single_type_managers"]),
        (BlockPool, ["hash_block_size", "num_gpu_blocks", "null_block"]),
        (
            FullAttentionManager,
            ["block_size", "req_to_blocks", "num_cached_block", "_partial_hit_reqs"],
        ),
        (EngineCore, ["scheduler"]),
        (InprocClient, ["engine_core"]),
        (AsyncLLM, ["engine_core"]),
        (LLMEngine, ["engine_core"]),
        (IterationStats, ["time_to_first_tokens_iter", "prompt_token_stats"]),
        (Request, ["block_hashes", "_block_hasher", "mm_features", "prompt_token_ids"]),
        (Request, ["num_computed_tokens", "num_stale_output_tokens", "status"]),
        (GPUModelRunner, ["requests", "input_batch", "attn_groups"]),
        (InputBatch, ["block_table", "num_computed_tokens_cpu"]),
        (BlockTable, ["block_size"]),
        (BlockTables, ["block_sizes"]),
        (DefaultModelState, ["model", "device", "max_num_reqs"]),
        (Attention, ["layer_name", "impl", "num_heads", "num_kv_heads", "head_size", "kv_cache"]),
        (Attention, ["sliding_window", "attn_backend"]),
        (CPUAttentionBackendImpl, ["scale", "alibi_slopes", "logits_soft_cap"]),
        (RotaryEmbeddingBase, ["rotary_dim", "is_neox_style", "cos_sin_cache"]),
        (MRotaryEmbedding, ["mrope_section", "mrope_interleaved"]),
        (clip.CLIPAttention, ["num_heads_per_partition", "tp_size", "scale", "attn"]),
        (EncoderCacheManager, ["num_freeable_slots"]),
        (BlockPool, ["enable_kv_cache_events"]),
        (InputProcessor, ["vllm_config"]),
        (OutputProcessor, ["request_states"]),
        (RequestState, ["stats", "external_req_id", "is_prefilling", "num_cached_tokens"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_attributes_that_we_read_are_set(cls: type, attributes: list[str]) -> None:
    made = set()
    for base in cls.__mro__[:-1]:
        if base is not torch.nn.Module and "__init__" in vars(base):
            made |= names_in(inspect.unwrap(vars(base)["__init__"]).__code__)
    assert [name for name in attributes if name not in made] == []


@pytest.mark.parametrize(
    ("cls", "needed"),
    [
        (ForwardContext, ["slot_mapping", "no_compile_layers", "attn_metadata"]),
        (CacheConfig, ["enable_prefix_caching"]),
        (PrefillStats, ["num_cached_tokens"]),
        (
            SchedulerStats,
            [
                "num_running_reqs",
                "num_waiting_reqs",
                "num_skipped_waiting_reqs",
                "kv_cache_usage",
            ],
        ),
        (PromptTokenStats, ["computed"]),
        (RequestStateStats, ["arrival_time", "first_token_latency", "num_generation_tokens"]),
        (KVCacheGroupSpec, ["layer_names", "kv_cache_spec"]),
        (AttentionGroup, ["layer_names", "kernel_block_size"]),
        (PlaceholderRange, ["offset", "length", "is_embed"]),
        (MultiModalFeatureSpec, ["mm_position"]),
        (CachedRequestState, ["sampling_params", "mm_features", "prompt_token_ids"]),
        (NewRequestData, ["req_id", "sampling_params", "mm_features", "prompt_token_ids"]),
        (
            input_batch_v2.InputBatch,
            [
                "req_ids",
                "num_reqs",
                "num_tokens",
                "num_computed_tokens_np",
                "num_scheduled_tokens",
                "seq_lens",
                "query_start_loc",
            ],
        ),
        (
            CommonAttentionMetadata,
            [
                "query_start_loc",
                "query_start_loc_cpu",
                "seq_lens",
                "seq_lens_cpu_upper_bound",
                "num_reqs",
                "num_actual_tokens",
                "max_query_len",
                "max_seq_len",
                "block_table_tensor",
                "slot_mapping",
                "causal",
            ],
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_fields_that_we_read_or_give(cls: type, needed: list[str]) -> None:
    fields = {field.name for field in dataclasses.fields(cls)}
    assert [name for name in needed if name not in fields] == []


def test_fields_of_an_engine_request() -> None:
    fields = EngineCoreRequest.__struct_fields__
    needed = {"request_id", "prompt_token_ids", "mm_features", "sampling_params"}
    assert needed | {"lora_request", "prompt_embeds", "resumable"} <= set(fields)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (InputProcessor.process_inputs, ["self"]),
        (BaseRenderer._process_tokens_async, ["self", "prompt", "skip_mm_cache"]),
        (
            BaseRenderer._process_mm_uuids,
            ["self", "mm_data", "mm_data_items", "mm_uuid_items", "mm_req_id"],
        ),
        (MultiModalHasher.hash_kwargs, ["algorithm"]),
        (OutputProcessor.add_request, ["self", "request"]),
        (BlockPool.get_num_free_blocks, ["self"]),
        (BlockPool.get_cached_block, ["self", "block_hash", "kv_cache_group_ids"]),
        (
            BlockPool._insert_block_hash,
            ["self", "block_hash_with_group_id", "block", "num_tokens"],
        ),
        (BlockPool._emit_block_removed_events, ["self", "block_hashes"]),
        (
            kv_cache_utils.generate_block_hash_extra_keys,
            ["request", "start_token_idx", "end_token_idx", "start_mm_idx"],
        ),
        (get_mm_features_in_window, ["mm_features", "start", "end"]),
        (KVCacheSpecRegistry._ensure_registered, []),
        (LoRAKernelMeta.prepare_tensors, ["self", "token_lora_mapping"]),
        (EncoderCacheManager.get_cached_input_ids, ["self", "request"]),
        (EncoderCacheManager.free_encoder_input, ["self", "request", "input_id"]),
        (AsyncMPClient.call_utility_all_async, ["self", "method", "args"]),
        (SyncMPClient.call_utility, ["self", "method", "args"]),
        (EngineCore.collective_rpc, ["self", "method", "timeout", "args", "kwargs"]),
        (Attention.get_kv_cache_spec, ["self", "vllm_config"]),
        (AttentionGroup.build_metadata, ["self", "common_attn_metadata"]),
        (GroupCoordinator.broadcast, ["self", "input_", "src"]),
        (
            AttentionMetadataBuilder.build,
            ["self", "common_prefix_len", "common_attn_metadata", "fast_build"],
        ),
        (BlockTable.get_device_tensor, ["self", "num_reqs"]),
        (SupportsMultiModal.get_language_model, ["self"]),
        (
            CPUAttentionBackendImpl.do_kv_cache_update,
            ["self", "layer", "key", "value", "kv_cache", "slot_mapping"],
        ),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_methods_that_we_call_take_what_we_give(method: Callable, arguments: list[str]) -> None:
    assert list(inspect.signature(method).parameters)[: len(arguments)] == arguments


def test_vllm_still_turns_breakable_graphs_on_by_the_name_that_we_read() -> None:
    name = "VLLM_USE_BREAKABLE_CUDAGRAPH"
    assert name in envs.environment_variables
    assert name in names_in(VllmConfig._maybe_enable_breakable_cudagraph.__code__)
    assert name in names_in(is_breakable_cudagraph_enabled.__code__)


def test_names_that_we_look_up_are_there() -> None:
    assert "llava" in registry._VLLM_MODELS["LlavaForConditionalGeneration"]
    assert hasattr(Cache(1), "_Cache__data"), "what is under vLLM's caches"
    layer = torch.nn.Module()
    set_default_quant_scales(layer, register_buffer=True)
    assert layer._k_scale.numel() == layer._q_scale.numel() == 1
    wrapper = Path(lora.__file__).with_name("punica_wrapper") / "punica_gpu.py"
    assert "self.token_mapping_meta" in wrapper.read_text(), "it does not import without a GPU"


def test_a_fetch_of_ours_is_tried_again_as_vllms_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM has no public way to that: its private decorator calls what has a ``timeout`` by keyword."""
    timeouts: list[float] = []

    @connections._async_retry
    async def fetch(url: str, *, timeout: float) -> bytes:
        timeouts.append(timeout)
        raise TimeoutError

    async def at_once(seconds: float) -> None:
        assert seconds > 0

    monkeypatch.setattr(asyncio, "sleep", at_once)
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "2")
    with pytest.raises(TimeoutError):
        asyncio.run(fetch("http://h/", timeout=4.0))
    first, second = timeouts
    assert first == 4.0 < second
    decorated = connections.HTTPConnection.async_get_bytes
    assert decorated.__code__ is fetch.__code__, "vLLM's own fetch is no more tried again by it"


def test_an_engine_core_is_asked_by_name() -> None:
    assert "getattr(self, method_name)" in inspect.getsource(EngineCoreProc._handle_client_request)
    for name in (UTILITY, GREET):
        assert name not in inspect.getsource(EngineCore), "ours stands in for vLLM's own"


def test_endpoint_plugins_are_loaded_by_a_name_looked_up_late() -> None:
    """Ours wraps ``vllm.plugins.load_endpoint_plugins`` after others may have imported it."""
    source = inspect.getsource(endpoint_plugins.attach_endpoint_plugins)
    assert "from vllm.plugins import load_endpoint_plugins" in source
    assert "plugin.attach_router(app)" in source
    assert "app.state.args = args" in inspect.getsource(build_app)
    assert "load_general_plugins()" in inspect.getsource(EngineArgs.__post_init__), "before the app"


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_a_family_of_ours_is_that_of_vllm_with_the_mixin_before_it(architecture: str) -> None:
    ours, stock = getattr(families, architecture), families.stock_class(architecture)
    assert ours.__mro__.index(ReductionMixin) < ours.__mro__.index(stock)
    # Without its processor a class would serve text only. One may leave places for registers.
    own, theirs = ours._processor_factory, stock._processor_factory
    if architecture in CLS_ARCHITECTURES:
        assert (own.info, own.dummy_inputs) == (theirs.info, theirs.dummy_inputs)
    else:
        assert own is theirs
    assert supports_multimodal(stock)
    assert not hasattr(stock, "get_model_state_cls"), "its runner state would be lost"


DECODERS = {
    glm4.Glm4Model: glm4.Glm4DecoderLayer,
    glm4_moe.Glm4MoeModel: glm4_moe.Glm4MoeDecoderLayer,
    internlm2.InternLM2Model: internlm2.InternLMDecoderLayer,
    llama.LlamaModel: llama.LlamaDecoderLayer,
    mistral.MistralModel: mistral.MistralDecoderLayer,
    qwen2.Qwen2Model: qwen2.Qwen2DecoderLayer,
    qwen3.Qwen3Model: qwen3.Qwen3DecoderLayer,
    qwen3_moe.Qwen3MoeModel: qwen3_moe.Qwen3MoeDecoderLayer,
    qwen3_vl.Qwen3LLMModel: qwen3_vl.Qwen3VLDecoderLayer,
    qwen3_vl_moe.Qwen3MoeLLMModel: qwen3_vl_moe.Qwen3VLMoeDecoderLayer,
}

PLAIN_LOOP = {
    *("embed_input_ids", "layers", "start_layer", "end_layer", "norm"),
    *("enumerate", "islice", "len", "range", "super", "forward"),
    # Of pipeline parallelism and speculative decoding, which are refused at start.
    *("get_pp_group", "is_first_rank", "is_last_rank", "IntermediateTensors"),
    *(
        "_maybe_add_hidden_state",
        "collect_remote_aux_hidden_states",
        "pack_local_aux_hidden_states",
    ),
}
"""All that the forward of a decoder which we repeat may use: no scale, no mask, no second input."""


def test_every_supported_decoder_is_looked_at() -> None:
    assert {decoder.__name__ for decoder in DECODERS} == set(SUPPORTED_DECODERS)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.__name__)
def test_decoders_still_run_the_loop_that_we_repeat(decoder: type) -> None:
    forward = inspect.unwrap(decoder.forward)
    assert set(forward.__code__.co_names) <= PLAIN_LOOP
    parameters = [name for name in inspect.signature(forward).parameters if name != "self"]
    known = ["input_ids", "positions", "intermediate_tensors", "inputs_embeds"]
    assert parameters[:4] == known
    # LLaMA hands `extra_layer_kwargs` and `t_cond` on to layers that have them; no model of ours does.
    assert {*parameters[4:]} <= {"deepstack_input_embeds", "extra_layer_kwargs", "t_cond"}
    layer = inspect.signature(inspect.unwrap(DECODERS[decoder].forward)).parameters
    assert list(layer)[:4] == ["self", "positions", "hidden_states", "residual"]
    if parameters[4:] == ["deepstack_input_embeds"]:
        assert '[f"deepstack_input_embeds_{layer_idx}"]' in inspect.getsource(forward)
