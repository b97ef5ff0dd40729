"""How layers lie in bands, and the combinations of vLLM's settings that we refuse at start-up."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import vllm.envs as envs
from vllm.config import CompilationMode, VllmConfig
from vllm.utils.platform_utils import is_uva_available
from vllm.utils.torch_utils import is_quantized_kv_cache

from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS, EngineSettings
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import ModelGeometry

FP8_DTYPES = ("fp8", "fp8_e4m3", "fp8_e5m2")
"""Values of --kv-cache-dtype that store a key as rounded numbers, with a scale a layer or a head."""

DEFAULT_BANDS = range(4, 10)
"""How many bands a model gets that names no number: enough to follow a schedule, and few enough that
their metadata is cheap. Models that cannot be split so (fewer than 4 layers, and 11) get one a layer."""


@dataclass(frozen=True)
class LayerBands:
    """A decoder's layers, in bands that each have KV blocks of their own."""

    layers: int
    starts: tuple[int, ...]
    """The first layer of each band, ascending, from 0 on."""

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> "LayerBands":
        layers = model_geometry(vllm_config).layers
        return cls(
            layers, band_starts(layers, EngineSettings.of(vllm_config.additional_config).bands)
        )

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First layer of each band, and the one behind its last."""
        return list(pairwise((*self.starts, self.layers)))


def model_geometry(vllm_config: VllmConfig) -> ModelGeometry:
    """The language model's geometry, from its Hugging Face text configuration."""
    # For each request: ``to_dict`` would copy every table that a configuration has.
    return ModelGeometry.from_config(vars(vllm_config.model_config.hf_text_config))


@cache
def band_starts(num_layers: int, bands: int | None) -> tuple[int, ...]:
    """First layer of each band; bands differ by at most one layer, the larger ones come first.

    None picks, of the counts in ``DEFAULT_BANDS``, the one of which vLLM pads the fewest layers, and
    of several the one nearest to six. Raises ConfigurationError with the counts that work.
    """
    possible = [count for count in range(1, num_layers + 1) if _stay_whole(num_layers, count)]
    if bands is None:
        bands = _default_bands(num_layers, possible)
    elif bands not in possible:
        raise ConfigurationError(
            f"additional-config vtr bands is {bands}, and {num_layers} layers can be split"
            f" into {possible} bands"
        )
    size, larger = divmod(num_layers, bands)
    return tuple(band * size + min(band, larger) for band in range(bands))


def padded_layers(num_layers: int, bands: int) -> int:
    """Layers without content for which vLLM reserves KV, since it makes all groups equally large."""
    return -num_layers % bands


def _default_bands(num_layers: int, possible: list[int]) -> int:
    counts = [count for count in possible if count in DEFAULT_BANDS] or [num_layers]
    return min(counts, key=lambda n: (padded_layers(num_layers, n), abs(n - 6), -n))


def _stay_whole(num_layers: int, bands: int) -> bool:
    """Whether vLLM makes one KV-cache group of each band.

    It pads groups to the size of the largest as long as that is less than one and a half times the
    smallest, and splits them otherwise (``_get_kv_cache_groups_uniform_page_size``).
    """
    smallest, larger = divmod(num_layers, bands)
    return larger == 0 or smallest + 1 < 1.5 * smallest


def _has_quantised_kv(config: VllmConfig) -> bool:
    dtype = config.cache_config.cache_dtype
    return is_quantized_kv_cache(dtype) and dtype not in FP8_DTYPES


def _prunes_video(config: VllmConfig) -> bool:
    multimodal = config.model_config.multimodal_config
    return multimodal is not None and bool(multimodal.video_pruning_rate)


def _shares_processed_media(config: VllmConfig) -> bool:
    """Processed images lie in shared memory: who admits a request sees an address and no grid of tokens."""
    multimodal = config.model_config.multimodal_config
    return multimodal is not None and multimodal.mm_processor_cache_type == "shm"


def _encodes_only(config: VllmConfig) -> bool:
    multimodal = config.model_config.multimodal_config
    return multimodal is not None and bool(multimodal.mm_encoder_only)


def _captures_kv_update(config: VllmConfig) -> bool:
    """Piecewise graphs that hold the write of keys and values: at the slots of the captured step, which a
    reduced request's are not. vLLM splits its graphs there by default."""
    compilation = config.compilation_config
    mode = compilation.cudagraph_mode
    return (
        compilation.mode != CompilationMode.NONE
        and mode is not None
        and mode.has_piecewise_cudagraphs()
        and "vllm::unified_kv_cache_update" not in (compilation.splitting_ops or ())
    )


def _wraps_layers(config: VllmConfig) -> bool:
    """Weights come from the host in a layer's ``forward``, which two halves of it would both call."""
    offload = config.offload_config
    prefetches = offload.offload_backend == "prefetch" or (
        offload.offload_backend == "auto" and offload.prefetch.offload_group_size > 0
    )
    has_uva = is_uva_available() and not envs.VLLM_WEIGHT_OFFLOADING_DISABLE_UVA
    return prefetches or (offload.uva.cpu_offload_gb > 0 and not has_uva)


def _shares_experts(config: VllmConfig) -> bool:
    """Data-parallel ranks of such a model exchange tokens in each layer, by the counts of the step."""
    return config.parallel_config.data_parallel_size > 1 and config.model_config.is_moe


_REFUSED: tuple[tuple[str, Callable[[VllmConfig], bool]], ...] = (
    ("pipeline parallelism", lambda c: c.parallel_config.pipeline_parallel_size > 1),
    ("decode context parallelism", lambda c: c.parallel_config.decode_context_parallel_size > 1),
    ("prefill context parallelism", lambda c: c.parallel_config.prefill_context_parallel_size > 1),
    ("data parallelism of a mixture-of-experts model", _shares_experts),
    ("micro-batching (ubatches, DBO)", lambda c: bool(c.parallel_config.use_ubatching)),
    ("speculative decoding", lambda c: c.speculative_config is not None),
    ("encoder-decoder models", lambda c: c.model_config.is_encoder_decoder),
    ("KV connectors (kv-transfer-config)", lambda c: c.kv_transfer_config is not None),
    ("a disaggregated encoder (ec-transfer-config)", lambda c: c.ec_transfer_config is not None),
    (
        "another encoder cache (ec-manager-config)",
        lambda c: c.ec_manager_config.encoder_cache_manager_cls is not None,
    ),
    (
        "weights offloaded layer by layer (offload-group-size, or cpu-offload-gb without UVA)",
        _wraps_layers,
    ),
    ("mm-encoder-only", _encodes_only),
    ("processed media in shared memory (mm-processor-cache-type shm)", _shares_processed_media),
    ("pruning of video tokens (video-pruning-rate)", _prunes_video),
    ("a KV cache of this type (kv-cache-dtype)", _has_quantised_kv),
    ("kv-cache-dtype-skip-layers", lambda c: bool(c.cache_config.kv_cache_dtype_skip_layers)),
    ("kv-sharing-fast-prefill", lambda c: bool(c.cache_config.kv_sharing_fast_prefill)),
    (
        "compilation mode 1 (STOCK_TORCH_COMPILE)",
        lambda c: c.compilation_config.mode == CompilationMode.STOCK_TORCH_COMPILE,
    ),
    (
        "breakable CUDA graphs (VLLM_USE_BREAKABLE_CUDAGRAPH; VLLM_BATCH_INVARIANT sets it for some"
        " models unless it is 0)",
        lambda _: bool(envs.VLLM_USE_BREAKABLE_CUDAGRAPH),
    ),
    (
        "piecewise CUDA graphs that hold the write of keys and values (use_inductor_graph_partition, or"
        " splitting_ops without vllm::unified_kv_cache_update)",
        _captures_kv_update,
    ),
    ("enable-return-routed-experts", lambda c: bool(c.aux_output_config.enabled)),
    ("sleep mode (enable-sleep-mode)", lambda c: bool(c.model_config.enable_sleep_mode)),
    (
        "disable-hybrid-kv-cache-manager",
        lambda c: bool(c.scheduler_config.disable_hybrid_kv_cache_manager),
    ),
)


def check_vllm_config(vllm_config: VllmConfig) -> None:
    """Refuse, by name, what reduction does not work with; raises ConfigurationError."""
    worker = _dotted(vllm_config.parallel_config.worker_cls)
    if worker != WORKER_CLS:
        # With our scheduler alone, blocks would shrink and the stock runner fill them in full.
        raise ConfigurationError(
            f"--scheduler-cls is {SCHEDULER_CLS} and --worker-cls is {worker}; the two go together:"
            f" add --worker-cls {WORKER_CLS}"
        )
    refused = [name for name, present in _REFUSED if present(vllm_config)]
    if refused:
        raise ConfigurationError(
            f"VTR does not support {', '.join(refused)}; start without, or set VLLM_PLUGINS='' to"
            " serve this model without VTR"
        )


def is_active(vllm_config: VllmConfig) -> bool:
    """Whether the engine was started with our scheduler and worker: then requests can be reduced.

    The plugin is loaded into every vLLM process of an environment. Without the two flags the
    model runs as in stock vLLM, and a request that asks for reduction is refused.
    """
    return _dotted(vllm_config.scheduler_config.scheduler_cls) == SCHEDULER_CLS


def _dotted(cls: object) -> str:
    """The name of a class, which may be given as one; of ours, that by which their folders offer them."""
    if not isinstance(cls, type):
        return str(cls)
    package = cls.__module__.rpartition(".")[0]
    offered = f"{package}.{cls.__qualname__}"
    return (
        offered
        if offered in (SCHEDULER_CLS, WORKER_CLS)
        else f"{cls.__module__}.{cls.__qualname__}"
    )
