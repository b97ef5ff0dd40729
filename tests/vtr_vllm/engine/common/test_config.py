"""Settings, bands and refusals at start-up."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, Qwen2_5_VLTextConfig
from vllm.config import CompilationMode, CUDAGraphMode, OffloadConfig, VllmConfig
from vllm.v1.core import kv_cache_utils

from vtr_vllm.engine.common import config as config_module
from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.engine.common.config import (
    LayerBands,
    band_starts,
    check_vllm_config,
    is_active,
    model_geometry,
    padded_layers,
)
from vtr_vllm.engine.scheduler.kv_bands import register_band_spec
from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS
from vtr_vllm.errors import ConfigurationError, UnsupportedModel
from vtr_vllm.schedules import ModelGeometry

LAYER_COUNTS = range(1, 129)
GROUPED = (*range(1, 17), 23, 24, 27, 28, 31, 32, 36, 40, 47, 48, 60, 61, 64, 80, 97, 128)
"""Layers for which vLLM is asked: all small numbers, those of models, and primes that need padding."""


def possible(layers):
    """Number of bands -> their first layers, for every number that is not refused."""
    found = {}
    for bands in range(1, layers + 1):
        try:
            found[bands] = band_starts(layers, bands)
        except ConfigurationError:
            continue
    return found


def lengths(starts, layers):
    return [end - start for start, end in zip(starts, (*starts[1:], layers), strict=True)]


def test_bands_differ_by_one_layer_at_most_the_larger_first():
    every = [(layers, *each) for layers in LAYER_COUNTS for each in possible(layers).items()]
    for layers, bands, starts in every:
        sizes = lengths(starts, layers)
        assert len(starts) == bands
        assert starts[0] == 0
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1 <= sizes[-1]
        assert padded_layers(layers, bands) == bands * sizes[0] - layers


def test_one_band_and_a_band_per_layer_always_work():
    for layers in LAYER_COUNTS:
        assert band_starts(layers, 1) == (0,)
        assert band_starts(layers, layers) == tuple(range(layers))


def test_the_default_pads_as_little_as_four_to_nine_bands_can():
    for layers in LAYER_COUNTS:
        counts = [bands for bands in possible(layers) if 4 <= bands <= 9]
        chosen = len(band_starts(layers, None))
        if not counts:
            assert layers in (1, 2, 3, 11)
            assert chosen == layers, "a band a layer, which pads nothing"
            continue
        assert chosen in counts
        least = min(padded_layers(layers, bands) for bands in counts)
        assert padded_layers(layers, chosen) == least
        as_good = [bands for bands in counts if padded_layers(layers, bands) == least]
        assert abs(chosen - 6) == min(abs(bands - 6) for bands in as_good)


@pytest.mark.parametrize(
    ("layers", "bands"),
    [
        *[(1, 1), (6, 6), (8, 8), (12, 6), (24, 6), (27, 9), (28, 7), (32, 8), (36, 6)],
        *[(40, 5), (48, 6), (60, 6), (64, 8), (80, 5)],
    ],
)
def test_known_models_are_not_padded_at_all(layers, bands):
    assert len(band_starts(layers, None)) == bands
    assert padded_layers(layers, bands) == 0


@pytest.mark.parametrize(("layers", "bands"), [(32, 0), (32, 33), (32, 12), (8, 5), (7, 3)])
def test_a_refusal_lists_what_works(layers, bands):
    with pytest.raises(ConfigurationError) as caught:
        band_starts(layers, bands)
    assert f"bands is {bands}" in str(caught.value)
    assert f"{layers} layers" in str(caught.value)
    assert str(sorted(possible(layers))) in str(caught.value)


@pytest.fixture(scope="module")
def registered():
    register_band_spec()


GROUPING = SimpleNamespace(
    scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
    attention_config=None,
    speculative_config=None,
    cache_config=SimpleNamespace(
        get_resolved_kv_cache_layout=lambda: SimpleNamespace(is_block_outermost=False)
    ),
)


def band_specs(starts, layers):
    specs = {}
    for band, (first, length) in enumerate(zip(starts, lengths(starts, layers), strict=True)):
        for layer in range(first, first + length):
            specs[f"layers.{layer}"] = BandSpec(
                block_size=16,
                num_kv_heads=2,
                head_size=16,
                dtype=torch.float32,
                band=band,
                first_layer=first,
            )
    return specs


def vllm_groups(starts, layers):
    """Layer names of each group that vLLM makes of so many layers in these bands."""
    groups = kv_cache_utils.get_kv_cache_groups(GROUPING, band_specs(starts, layers))
    return [sorted(group.layer_names) for group in groups]


@pytest.mark.parametrize("layers", GROUPED)
def test_vllm_makes_one_group_of_each_band(registered, layers):
    """At most it pads some of them, which costs memory but makes no group."""
    ours = possible(layers).values() if layers in (7, 24, 40) else [band_starts(layers, None)]
    for starts in ours:
        ends = (*starts[1:], layers)
        expected = [
            sorted(f"layers.{layer}" for layer in range(first, end))
            for first, end in zip(starts, ends, strict=True)
        ]
        assert vllm_groups(starts, layers) == expected


def test_vllm_splits_the_bands_that_we_refuse(registered):
    """32 layers in 12 bands are 8 of 3 and 4 of 2: vLLM would make two groups of each band of 3."""
    starts = (*range(0, 24, 3), *range(24, 32, 2))
    assert len(vllm_groups(starts, 32)) == 8 * 2 + 4


@pytest.mark.parametrize("layers", GROUPED)
def test_vllm_reserves_what_padded_layers_says(registered, layers):
    """In bytes: a block of every band holds so many layers more than the model has."""
    starts = band_starts(layers, None)
    bands = len(starts)
    groups = kv_cache_utils.get_kv_cache_groups(GROUPING, band_specs(starts, layers))
    layout = GROUPING.cache_config.get_resolved_kv_cache_layout()
    reserved = bands * kv_cache_utils._get_kv_cache_bytes_per_block(groups, layout)
    page = groups[0].kv_cache_spec.page_size_bytes
    assert reserved == (layers + padded_layers(layers, bands)) * page


def config():
    return SimpleNamespace(
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            use_ubatching=False,
            data_parallel_size=1,
            worker_cls=WORKER_CLS,
        ),
        speculative_config=None,
        kv_transfer_config=None,
        ec_transfer_config=None,
        aux_output_config=SimpleNamespace(enabled=False),
        model_config=SimpleNamespace(
            is_encoder_decoder=False,
            is_moe=False,
            enable_sleep_mode=False,
            multimodal_config=SimpleNamespace(
                video_pruning_rate=None, mm_encoder_only=False, mm_processor_cache_type="lru"
            ),
        ),
        ec_manager_config=SimpleNamespace(encoder_cache_manager_cls=None),
        offload_config=OffloadConfig(),
        cache_config=SimpleNamespace(
            cache_dtype="auto", kv_cache_dtype_skip_layers=[], kv_sharing_fast_prefill=False
        ),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=None),
        compilation_config=SimpleNamespace(
            mode=CompilationMode.VLLM_COMPILE,
            cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
            splitting_ops=["vllm::unified_attention_with_output", "vllm::unified_kv_cache_update"],
        ),
    )


def test_an_ordinary_configuration_passes():
    check_vllm_config(config())
    for dtype in ("bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"):
        stored = config()
        stored.cache_config.cache_dtype = dtype
        check_vllm_config(stored)
    without_images = config()
    without_images.model_config.multimodal_config = None
    check_vllm_config(without_images)


def test_weights_may_be_offloaded_where_a_layers_forward_stays(monkeypatch):
    changed = config()
    changed.offload_config = OffloadConfig(uva={"cpu_offload_gb": 4})
    monkeypatch.setattr(config_module, "is_uva_available", lambda: True)
    check_vllm_config(changed)
    monkeypatch.setattr(config_module, "is_uva_available", lambda: False)
    with pytest.raises(ConfigurationError, match="weights offloaded layer by layer"):
        check_vllm_config(changed)
    changed.offload_config = OffloadConfig(prefetch={"offload_group_size": 8})
    with pytest.raises(ConfigurationError, match="weights offloaded layer by layer"):
        check_vllm_config(changed)


def test_engines_side_by_side_share_experts_only_where_there_are_any():
    changed = config()
    changed.parallel_config.data_parallel_size = 2
    check_vllm_config(changed)
    changed.model_config.is_moe = True
    with pytest.raises(ConfigurationError, match="data parallelism of a mixture-of-experts model"):
        check_vllm_config(changed)
    changed.parallel_config.data_parallel_size = 1
    check_vllm_config(changed)


@pytest.mark.parametrize(
    ("mode", "graphs", "splits"),
    [
        (CompilationMode.VLLM_COMPILE, CUDAGraphMode.FULL_DECODE_ONLY, []),
        (CompilationMode.VLLM_COMPILE, CUDAGraphMode.NONE, None),
        (CompilationMode.NONE, CUDAGraphMode.FULL_AND_PIECEWISE, []),
    ],
)
def test_a_write_of_keys_and_values_outside_of_piecewise_graphs_passes(mode, graphs, splits):
    changed = config()
    changed.compilation_config = SimpleNamespace(
        mode=mode, cudagraph_mode=graphs, splitting_ops=splits
    )
    check_vllm_config(changed)


UNSUPPORTED = {
    "pipeline parallelism": ("parallel_config.pipeline_parallel_size", 2),
    "decode context parallelism": ("parallel_config.decode_context_parallel_size", 2),
    "prefill context parallelism": ("parallel_config.prefill_context_parallel_size", 2),
    "micro-batching": ("parallel_config.use_ubatching", True),
    "speculative decoding": ("speculative_config", object()),
    "encoder-decoder": ("model_config.is_encoder_decoder", True),
    "KV connectors": ("kv_transfer_config", object()),
    "disaggregated encoder": ("ec_transfer_config", object()),
    "another encoder cache": ("ec_manager_config.encoder_cache_manager_cls", "somebody.Cache"),
    "processed media in shared memory (mm-processor-cache-type shm)": (
        "model_config.multimodal_config.mm_processor_cache_type",
        "shm",
    ),
    "mm-encoder-only": ("model_config.multimodal_config.mm_encoder_only", True),
    "pruning of video tokens": ("model_config.multimodal_config.video_pruning_rate", 0.5),
    "KV cache of this type": ("cache_config.cache_dtype", "int8_per_token_head"),
    "kv-cache-dtype-skip-layers": ("cache_config.kv_cache_dtype_skip_layers", ["0"]),
    "kv-sharing-fast-prefill": ("cache_config.kv_sharing_fast_prefill", True),
    "STOCK_TORCH_COMPILE": ("compilation_config.mode", CompilationMode.STOCK_TORCH_COMPILE),
    "hold the write of keys and values": ("compilation_config.splitting_ops", ["vllm::other"]),
    "enable-return-routed-experts": ("aux_output_config.enabled", True),
    "sleep mode": ("model_config.enable_sleep_mode", True),
    "disable-hybrid-kv-cache-manager": ("scheduler_config.disable_hybrid_kv_cache_manager", True),
}


@pytest.fixture
def environment(monkeypatch):
    """Nothing is set, and what vLLM sets is taken back."""
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "0")
    monkeypatch.delenv("VLLM_USE_BREAKABLE_CUDAGRAPH")
    return monkeypatch


def test_breakable_cuda_graphs_are_refused(environment):
    """They replay the whole model, decoder and all: no reduced step would be one."""
    check_vllm_config(config())
    environment.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    with pytest.raises(ConfigurationError, match="VLLM_USE_BREAKABLE_CUDAGRAPH"):
        check_vllm_config(config())
    environment.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "0")
    check_vllm_config(config())


@pytest.mark.parametrize(
    ("asks", "also"),
    [
        ("_uses_breakable_cudagraph_by_default", {}),
        ("_uses_breakable_cudagraph_for_batch_invariance", {"VLLM_BATCH_INVARIANT": "1"}),
    ],
)
def test_also_where_vllm_turns_them_on_by_itself(asks, also, environment):
    """For some models, and for some where batches are to be invariant; a 0 keeps them off."""
    for name, value in also.items():
        environment.setenv(name, value)
    for asked, refused in ((None, True), ("0", False)):
        environment.delenv("VLLM_USE_BREAKABLE_CUDAGRAPH", raising=False)
        if asked is not None:
            environment.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", asked)
        VllmConfig._maybe_enable_breakable_cudagraph(
            SimpleNamespace(
                compilation_config=SimpleNamespace(mode=None),
                _uses_breakable_cudagraph_by_default=lambda: asks.endswith("default"),
                _uses_breakable_cudagraph_for_batch_invariance=lambda: True,
            )
        )
        if refused:
            with pytest.raises(ConfigurationError, match="VLLM_BATCH_INVARIANT sets it"):
                check_vllm_config(config())
        else:
            check_vllm_config(config())


def set_at(target, path, value):
    *parents, name = path.split(".")
    for parent in parents:
        target = getattr(target, parent)
    assert hasattr(target, name)
    setattr(target, name, value)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_each_unsupported_feature_is_refused_by_name(name):
    changed = config()
    set_at(changed, *UNSUPPORTED[name])
    with pytest.raises(ConfigurationError) as caught:
        check_vllm_config(changed)
    assert name in str(caught.value)
    assert not any(other in str(caught.value) for other in UNSUPPORTED if other != name)


@pytest.mark.parametrize("worker", ["auto", "vllm.v1.worker.gpu_worker.Worker"])
def test_our_scheduler_without_our_worker_is_refused(worker):
    changed = config()
    changed.parallel_config.worker_cls = worker
    with pytest.raises(ConfigurationError) as caught:
        check_vllm_config(changed)
    assert f"--worker-cls is {worker}" in str(caught.value)
    assert f"add --worker-cls {WORKER_CLS}" in str(caught.value)


def test_all_of_them_are_named_at_once():
    changed = config()
    for path, value in UNSUPPORTED.values():
        set_at(changed, path, value)
    with pytest.raises(ConfigurationError) as caught:
        check_vllm_config(changed)
    assert all(name in str(caught.value) for name in UNSUPPORTED)


def active(scheduler_cls):
    return is_active(SimpleNamespace(scheduler_config=SimpleNamespace(scheduler_cls=scheduler_cls)))


def test_active_with_our_scheduler_only():
    ours = type("Scheduler", (), {"__module__": "vtr_vllm.engine.scheduler.scheduler"})
    assert active(SCHEDULER_CLS)
    assert active(ours)
    assert not active(None)
    assert not active("vllm.v1.core.sched.scheduler.Scheduler")
    assert not active(type("Scheduler", (), {}))


def test_geometry_comes_from_the_text_configuration():
    def of(text_config):
        return model_geometry(
            SimpleNamespace(model_config=SimpleNamespace(hf_text_config=text_config))
        )

    for text_config in (
        LlamaConfig(num_hidden_layers=12, hidden_size=64, num_attention_heads=4),
        Qwen2_5_VLTextConfig(num_hidden_layers=12, num_key_value_heads=2),
    ):
        assert of(text_config) == ModelGeometry.from_config(text_config.to_dict())
        assert of(text_config).layers == 12
    with pytest.raises(UnsupportedModel, match="num_hidden_layers"):
        of(SimpleNamespace(hidden_size=64))


def test_bands_reach_to_the_next_or_to_the_last_layer() -> None:
    assert LayerBands(7, (0, 3, 5)).ranges == [(0, 3), (3, 5), (5, 7)]
