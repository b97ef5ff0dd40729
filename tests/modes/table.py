"""How vLLM serves a model, line by line: what works, what is refused, what only a GPU can show.

``docs/support.md`` is made of it: ``python -m tests.modes.docs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.config import CompilationMode, CUDAGraphMode


@dataclass(frozen=True)
class Works:
    """A mode with its proof."""

    name: str
    flags: str
    """How it is asked for, for the page."""
    proof: str
    """``FILE::TEST`` under tests/."""
    note: str = ""
    engine: Mapping[str, Any] | None = None
    """Arguments of ``vllm.LLM``: the mixed batch runs with them and answers as without."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A mode that the engine does not start in."""

    name: str
    """Also the name in the error."""
    flags: str
    why: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of ``vllm.EngineArgs``."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the finished configuration, where the CPU build does not let the flag through."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RefusedRequest:
    """What a reduced request may not ask for; at budget 1.0 it may."""

    name: str
    why: str
    proof: str


@dataclass(frozen=True)
class Untested:
    """A mode that nothing here can show."""

    name: str
    flags: str
    why: str


_BATCH = "modes/test_modes.py::test_same_tokens_as_the_plain_engine"
_SERVER = "modes/test_server_modes.py::test_two_engines_and_two_servers"

WORKS: tuple[Works, ...] = (
    Works(
        "uncompiled",
        "`--enforce-eager`",
        "modes/test_modes.py::test_the_plain_engine_is_stock_vllm_at_full_budget",
        "reduced requests against the reference: `vtr_vllm/engine/worker/test_decoder.py`",
    ),
    Works("torch.compile", "default", _BATCH, "inductor on the CPU", {"enforce_eager": False}),
    Works(
        "tensor parallelism",
        "`--tensor-parallel-size 2`",
        _BATCH,
        "ranks merge their heads' scores, and keep the same tokens",
        {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    ),
    Works("data parallelism", "`--data-parallel-size 2`", _SERVER, "not for mixtures of experts"),
    Works("several API servers", "`--api-server-count 2`", _SERVER),
    Works(
        "prefix caching",
        "default",
        "vtr_vllm/engine/scheduler/test_scheduler.py::test_no_wrong_prefix_hit",
        "guided by their question, requests share the text before the first image",
    ),
    Works(
        "reuse of local schedules",
        'default; `"reuse": true`',
        "vtr_vllm/engine/scheduler/test_local_hits.py::test_any_order_any_neighbours_any_chunks_any_cache",
        "later turns and other questions share all before them, in chunks, under preemption and eviction",
    ),
    Works(
        "chunked prefill, no prefix caching, priorities",
        "`--max-num-batched-tokens 192 --no-enable-prefix-caching --scheduling-policy priority`",
        _BATCH,
        "an image of a local schedule, and of a guided request the range from the first vision token to"
        " the prompt's end, runs in one step, or the request is refused",
        {
            "max_num_batched_tokens": 192,
            "max_num_seqs": 8,
            "enable_prefix_caching": False,
            "scheduling_policy": "priority",
        },
    ),
    Works(
        "preemption",
        "small KV cache",
        "vtr_vllm/engine/scheduler/test_scheduler.py::test_tokens_do_not_depend_on_neighbours_or_preemption",
    ),
    Works(
        "trained ATP modules",
        "`vtr serve --atp DIR`",
        "modes/test_modes.py::test_trained_modules",
        "on two ranks, under async scheduling with preemption, on both runners",
    ),
    Works(
        "async scheduling",
        "GPU default",
        "modes/test_modes.py::test_async_scheduling",
        "both runners, with preemption; the CPU platform switches it off, and the test on again",
    ),
    Works(
        "full CUDA graphs of decode steps",
        "GPU default",
        "modes/test_modes.py::test_full_graphs_of_decode_steps",
        "on runner V2 with FlashAttention or Triton attention, elsewhere piecewise; here a captured step"
        " is called again, through Triton's interpreter; right on an H200 ([gpu.md](gpu.md))",
    ),
    Works(
        "M-RoPE on two ranks, in small steps, the tower split by images",
        "`--tensor-parallel-size 2 --max-num-batched-tokens 400 --mm-encoder-tp-mode data`",
        "modes/test_modes.py::test_m_rope",
        "Qwen2.5-VL, with videos",
    ),
    Works(
        "LoRA",
        "`--enable-lora`",
        "modes/test_lora.py::test_an_adapter_is_as_merged_weights",
        "reduced requests too, beside others without an adapter; on a CPU keep one slot of"
        " `--max-loras` free: vLLM's kernels there take the last for requests without an adapter",
    ),
    Works(
        "int8 weights and activations",
        "compressed-tensors W8A8",
        "modes/test_quantised.py::test_int8",
        "at full budget stock's tokens; of reduced requests only three first tokens in four must be"
        " those of the unpacked weights, since activations are rounded by other kernels",
    ),
    Works(
        "int4 weights",
        "compressed-tensors W4A16",
        "modes/test_quantised.py::test_int4",
        "held to what int8 is held to, in bf16",
    ),
    Works(
        "fp8 KV cache",
        "`--kv-cache-dtype fp8`",
        "modes/test_quantised.py::test_fp8_kv_cache",
        "`fp8_e4m3`, `fp8_e5m2`: stock's tokens at full budget, and a cold request's when warm, since"
        " a ranking reads keys as the cache rounds them; the CPU needs AVX-512",
    ),
    Works(
        "images as embeddings",
        "`--enable-mm-embeds`",
        "modes/test_modes.py::test_images_as_embeddings",
        "all rank rules but `cls`, which the tower must see",
    ),
    Works(
        "runner V2",
        "GPU default",
        "vtr_vllm/engine/worker/test_decoder.py::test_reduced_runs_equal_the_reference",
        "here through Triton's interpreter: `make test-v2`",
    ),
)

REFUSED: tuple[Refused, ...] = (
    Refused(
        "pipeline parallelism",
        "`--pipeline-parallel-size 2`",
        "rows would go to the next stage without the plan",
        {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"},
    ),
    Refused(
        "decode context parallelism",
        "`--decode-context-parallel-size 2`",
        "ranks hold parts of the keys by position, and storage is compact",
        changes={"parallel_config.decode_context_parallel_size": 2},
    ),
    Refused(
        "prefill context parallelism",
        "`--prefill-context-parallel-size 2`",
        "ranks run parts of the range",
        changes={"parallel_config.prefill_context_parallel_size": 2},
    ),
    Refused(
        "data parallelism of a mixture-of-experts model",
        "`--data-parallel-size 2` with such a model",
        "ranks exchange rows in each layer, by counts that a cut changes",
        changes={
            "parallel_config.data_parallel_size": 2,
            "model_config.model_arch_config.num_experts": 4,
        },
    ),
    Refused(
        "micro-batching (ubatches, DBO)",
        "`--enable-dbo`, `--ubatch-size 2`",
        "a step's halves have no plan each",
        changes={"parallel_config.ubatch_size": 2},
    ),
    Refused(
        "speculative decoding",
        "`--speculative-config`",
        "drafted tokens and their KV follow no plan",
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    ),
    Refused(
        "encoder-decoder models",
        "an encoder-decoder model",
        "the decoder's prompt holds no vision tokens",
        changes={"model_config.is_encoder_decoder": True},
    ),
    Refused(
        "KV connectors (kv-transfer-config)",
        "`--kv-transfer-config`, `--kv-offloading-size`",
        "they name KV by the prompt's tokens, and reduced KV depends on more",
        {"kv_offloading_size": 1.0},
    ),
    Refused(
        "a disaggregated encoder (ec-transfer-config)",
        "`--ec-transfer-config`",
        "embeddings made elsewhere lack what rank rule `cls` reads",
        {"ec_transfer_config": {"ec_connector": "ECExampleConnector", "ec_role": "ec_both"}},
    ),
    Refused(
        "another encoder cache (ec-manager-config)",
        "`--ec-manager-config`",
        "it may be too small for all images of a range, which would wait for ever",
        {"ec_manager_config": {"encoder_cache_manager_cls": "somebody.Cache"}},
    ),
    Refused(
        "weights offloaded layer by layer (offload-group-size, or cpu-offload-gb without UVA)",
        "`--offload-group-size`, `--cpu-offload-gb` where there is no UVA",
        "weights come in a layer's `forward`, which a cut inside of the layer calls in halves",
        changes={"offload_config.offload_backend": "prefetch"},
    ),
    Refused(
        "mm-encoder-only",
        "`--mm-encoder-only`",
        "there is no decoder to reduce",
        {"mm_encoder_only": True},
    ),
    Refused(
        "processed media in shared memory (mm-processor-cache-type shm)",
        "`--mm-processor-cache-type shm`",
        "who admits a request sees an address then, and neither an image's grid nor a video's frames",
        {"mm_processor_cache_type": "shm"},
    ),
    Refused(
        "pruning of video tokens (video-pruning-rate)",
        "`--video-pruning-rate 0.5`",
        "vLLM drops tokens by itself then, and counts positions anew",
        {"video_pruning_rate": 0.5},
    ),
    Refused(
        "a KV cache of this type (kv-cache-dtype)",
        "`--kv-cache-dtype`, all but `fp8`, `fp8_e4m3`, `fp8_e5m2` and plain types",
        "keys cannot be read back for a ranking",
        {"kv_cache_dtype": "int8_per_token_head"},
    ),
    Refused(
        "kv-cache-dtype-skip-layers",
        "`--kv-cache-dtype-skip-layers`",
        "bands have one type",
        {"kv_cache_dtype_skip_layers": ["0"]},
    ),
    Refused(
        "kv-sharing-fast-prefill",
        "`--kv-sharing-fast-prefill`",
        "its metadata follows no plan",
        {"kv_sharing_fast_prefill": True},
    ),
    Refused(
        "compilation mode 1 (STOCK_TORCH_COMPILE)",
        "`--compilation-config.mode 1`",
        "torch would trace the plan of one step into the model",
        {"compilation_config": {"mode": 1}},
    ),
    Refused(
        "breakable CUDA graphs (VLLM_USE_BREAKABLE_CUDAGRAPH; VLLM_BATCH_INVARIANT sets it for some"
        " models unless it is 0)",
        "`VLLM_USE_BREAKABLE_CUDAGRAPH=1`",
        "the whole model is replayed then, and no step reaches its plan",
        environment={"VLLM_USE_BREAKABLE_CUDAGRAPH": "1"},
    ),
    Refused(
        "piecewise CUDA graphs that hold the write of keys and values (use_inductor_graph_partition, or"
        " splitting_ops without vllm::unified_kv_cache_update)",
        "`--compilation-config.use_inductor_graph_partition true`",
        "a replay writes where the captured step did, and not where a reduced request stores",
        changes={
            "compilation_config.mode": CompilationMode.VLLM_COMPILE,
            "compilation_config.cudagraph_mode": CUDAGraphMode.FULL_AND_PIECEWISE,
            "compilation_config.splitting_ops": ["vllm::unified_attention_with_output"],
        },
    ),
    Refused(
        "enable-return-routed-experts",
        "`--enable-return-routed-experts`",
        "dropped tokens have no experts in deeper layers",
        changes={"aux_output_config.enable_return_routed_experts": True},
    ),
    Refused(
        "sleep mode (enable-sleep-mode)",
        "`--enable-sleep-mode`",
        "CUDA only, and what VTR learns of the KV cache at start would not survive it",
        changes={"model_config.enable_sleep_mode": True},
    ),
    Refused(
        "disable-hybrid-kv-cache-manager",
        "`--disable-hybrid-kv-cache-manager`",
        "bands are KV-cache groups",
        {"disable_hybrid_kv_cache_manager": True},
    ),
)

_FEATURES = "vtr_vllm/engine/frontend/test_admission.py::test_excluded_features_are_refused_on_reduced_requests_only"

REFUSED_REQUESTS: tuple[RefusedRequest, ...] = (
    RefusedRequest("prompt_logprobs", "dropped positions have none", _FEATURES),
    RefusedRequest("prompt embeddings", "the prompt has no image to find", _FEATURES),
    RefusedRequest(
        "streaming input",
        "the prompt's end is not known",
        "vtr_vllm/engine/frontend/test_admission.py::test_streaming_input_has_full_budget",
    ),
    RefusedRequest(
        "`vtr_trace` with `n` > 1",
        "the answers would leave their traces under one name",
        "vtr_vllm/engine/frontend/test_admission.py::test_several_answers_leave_no_trace",
    ),
    RefusedRequest(
        "a prompt that ends with an image",
        "its last position asks and answers, so it must be text",
        "vtr_vllm/engine/frontend/test_admission.py::test_what_is_malformed",
    ),
    RefusedRequest(
        "a range, or an image, longer than a step",
        "it would wait for ever",
        "vtr_vllm/engine/frontend/test_admission.py::test_a_range_that_fits_no_step",
    ),
    RefusedRequest(
        "rank rule `cls` with `--enable-mm-embeds`",
        "no tower sees the image",
        "vtr_vllm/engine/frontend/test_admission.py::test_the_cls_rule_needs_images_that_the_tower_sees",
    ),
    RefusedRequest(
        "rank rule `atp` with an adapter, or with more than one image",
        "the modules were trained without the one, and on one",
        "vtr_vllm/engine/worker/test_modules.py::test_what_modules_cannot_judge_is_refused",
    ),
    RefusedRequest(
        "another architecture, `--model-impl transformers` among them",
        "its forward pass is not known",
        "vtr_vllm/engine/frontend/test_admission.py::test_an_architecture_that_we_do_not_reduce",
    ),
)

UNTESTED: tuple[Untested, ...] = (
    Untested(
        "piecewise CUDA graphs",
        "GPU default",
        "attention runs outside them, as it does without graphs; right on an H200 ([gpu](gpu.md))",
    ),
    Untested(
        "expert parallelism",
        "`--enable-expert-parallel`",
        "without data parallelism; vLLM's CPU build crashes with it, with VTR or without",
    ),
    Untested("expert load balancing", "`--enable-eplb`", "vLLM has it on GPUs only"),
    Untested("KV events", "`--kv-events-config`", "reduced KV is never announced; no case"),
    Untested("weights exchanged while serving", "`--weight-transfer-config`", "no case"),
    Untested("weights offloaded by UVA", "`--cpu-offload-gb`", "vLLM has it on GPUs only"),
    Untested("several nodes", "`--nnodes`, `--headless`", "one machine runs the tests"),
)
