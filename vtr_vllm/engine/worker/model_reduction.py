"""The reduction of one loaded model: its decoder's layers in bands, and its decoder's call caught."""

import logging
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import KVCacheConfig

from vtr_vllm.engine.common.band_spec import put_into_band
from vtr_vllm.engine.common.config import LayerBands, model_geometry
from vtr_vllm.engine.common.registers import registers_of
from vtr_vllm.engine.worker.attention import Step, band_groups, check_backends
from vtr_vllm.engine.worker.compiled import LayerRunner
from vtr_vllm.engine.worker.decode_graphs import limit_graphs
from vtr_vllm.engine.worker.decoder import ReducibleDecoder
from vtr_vllm.engine.worker.memory import StepMemory, reserve
from vtr_vllm.engine.worker.modules import Modules
from vtr_vllm.engine.worker.scoring import chosen_by_first_rank
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.ranking.rules.atp import Atp

logger = logging.getLogger("vllm.vtr")


class Reduction:
    """The reduction of one loaded model: its layers in bands, and the step about to run."""

    def __init__(self, vllm_config: VllmConfig, decoder: nn.Module) -> None:
        self.geometry = model_geometry(vllm_config)
        self.bands = LayerBands.of(vllm_config)
        modules = Modules.of(vllm_config, torch.device(current_platform.device_type))
        self.decoder = ReducibleDecoder(
            decoder,
            self.geometry.layers,
            LayerRunner(vllm_config),
            registers_of(vllm_config.model_config.hf_config),
            modules,
        )
        backends = {layer.attn_backend.get_name() for layer in self.decoder.attentions}
        check_backends(backends)
        limit_graphs(vllm_config, backends)
        # Once here, where vLLM still measures memory: a group's first broadcast takes some for good.
        chosen_by_first_rank(torch.zeros(1, dtype=torch.int64, device=current_platform.device_type))
        self._memory = StepMemory.of(
            self.decoder.attentions[0],
            self.geometry.hidden_size,
            vllm_config.model_config.dtype,
            vllm_config.model_config.max_model_len,
            self.geometry.layers,
            looks=1 if modules is None else len(Atp().looks),
        )
        self.ready = False
        self.cls_rows: torch.Tensor | None = None
        """[rows of the step] attention of the vision tower's CLS token at vision rows."""
        self._step: Step | None = None
        self._put_into_bands()
        _catch_calls(decoder, self)
        logger.info("VTR: %d layers in %d bands", self.geometry.layers, len(self.bands.starts))

    def _put_into_bands(self) -> None:
        for band, (first, end) in enumerate(self.bands.ranges):
            for attention in self.decoder.attentions[first:end]:
                put_into_band(attention, band, first)

    def bind_kv_cache(self, kv_cache_config: KVCacheConfig, block_size: int) -> None:
        """Check that vLLM grouped the layers by band, and learn how keys are stored.

        Called by the runner's adapter once the cache is allocated; raises ConfigurationError.
        """
        groups = band_groups(kv_cache_config)
        grouped = [kv_cache_config.kv_cache_groups[group].layer_names for group in groups]
        expected = [self.decoder.layer_names[first:end] for first, end in self.bands.ranges]
        if [sorted(names) for names in grouped] != [sorted(names) for names in expected]:
            raise ConfigurationError(
                f"vLLM put the decoder layers into the KV-cache groups {grouped}; VTR needs"
                f" {len(expected)} bands; do not set --disable-hybrid-kv-cache-manager"
            )
        self.decoder.warm_up(block_size)
        self.ready = True

    def expect(self, step: Step | None) -> None:
        """Hand over the plan of the step that runs next; None for a step as in stock vLLM."""
        self._step = step

    def take_step(self) -> Step | None:
        """The plan handed over, once: a later run without one must not see it."""
        step, self._step = self._step, None
        return step

    def run_layers(
        self,
        positions: torch.Tensor,
        embeddings: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        **inputs: Any,
    ) -> torch.Tensor | None:
        """The decoder's answer [padded N, hidden] to a step with cuts; None to run it as in vLLM."""
        step = self.take_step()
        if step is None:
            return None
        if not step.plan.cuts:
            self.decoder.install_slots(step, positions.shape[-1])
            return None
        if embeddings is None:
            embeddings = self.decoder.embed(input_ids)
        return self.decoder.forward(step, positions, embeddings, self.cls_rows, **inputs)

    def reserve(self, positions: torch.Tensor) -> None:
        """Reserve memory behind the run that vLLM measures: one before the KV cache is there.

        ``positions`` [..., N] are the run's.
        """
        if not self.ready:
            reserve(self._memory, positions.shape[-1], positions.device)


def _catch_calls(decoder: nn.Module, reduction: Reduction) -> None:
    """Let ``decoder`` ask ``reduction`` first whenever it is called.

    Each family's forward calls its decoder in its own way, some with more than embeddings; at the
    call itself they are alike. Python looks ``__call__`` up in the class (and vLLM's compilation
    puts its own there), so the instance gets a subclass.
    """
    stock = type(decoder)

    def call(
        self: nn.Module,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        hidden = reduction.run_layers(positions, inputs_embeds, input_ids, **inputs)
        if hidden is not None:
            return hidden
        hidden = stock.__call__(
            self, input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds, **inputs
        )
        reduction.reserve(positions)
        return hidden

    decoder.__class__ = type(stock.__name__, (stock,), {"__call__": call})
