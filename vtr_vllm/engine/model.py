"""What makes a vLLM model reducible: a mixin before the model's own class."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.clip import CLIPVisionModel
from vllm.v1.kv_cache_interface import KVCacheConfig

from vtr_vllm.engine.attention import Step, band_groups
from vtr_vllm.engine.config import (
    EngineSettings,
    band_starts,
    check_vllm_config,
    is_active,
    model_geometry,
)
from vtr_vllm.engine.decoder import ReducibleDecoder
from vtr_vllm.engine.kv_bands import put_into_band
from vtr_vllm.engine.tower import ClsAttention, attach, detach
from vtr_vllm.errors import ConfigurationError

logger = logging.getLogger("vllm.vtr")


class Reduction:
    """The reduction of one loaded model: its layers in bands, and the step about to run."""

    def __init__(self, vllm_config: VllmConfig, decoder: torch.nn.Module) -> None:
        check_vllm_config(vllm_config)
        self.geometry = model_geometry(vllm_config)
        self.band_starts = band_starts(self.geometry.layers, EngineSettings.of(vllm_config).bands)
        self.decoder = ReducibleDecoder(decoder, self.geometry.layers)
        self.ready = False
        self._step: Step | None = None
        self._put_into_bands()
        logger.info("VTR: %d layers in %d bands", self.geometry.layers, len(self.band_starts))

    def _put_into_bands(self) -> None:
        ends = (*self.band_starts[1:], self.geometry.layers)
        for band, (first, end) in enumerate(zip(self.band_starts, ends, strict=True)):
            for attention in self.decoder.attentions[first:end]:
                put_into_band(attention, band, first)

    def bind_kv_cache(self, kv_cache_config: KVCacheConfig, block_size: int) -> None:
        """Check that vLLM grouped the layers by band, and learn how keys are stored.

        Called by the runner's adapter once the cache is allocated; raises ConfigurationError.
        """
        groups = band_groups(kv_cache_config)
        grouped = [kv_cache_config.kv_cache_groups[group].layer_names for group in groups]
        ends = (*self.band_starts[1:], self.geometry.layers)
        expected = [
            self.decoder.layer_names[first:end]
            for first, end in zip(self.band_starts, ends, strict=True)
        ]
        if [sorted(names) for names in grouped] != [sorted(names) for names in expected]:
            raise ConfigurationError(
                f"vLLM put the decoder layers into the KV-cache groups {grouped}; VTR needs"
                f" {len(expected)} bands; do not set --disable-hybrid-kv-cache-manager"
            )
        self.decoder.learn_key_layout(block_size)
        self.ready = True

    def expect(self, step: Step | None) -> None:
        """Hand over the plan of the step that runs next; None for a step as in stock vLLM."""
        self._step = step

    def take_step(self) -> Step | None:
        """The plan handed over, once: a later run without one must not see it."""
        step, self._step = self._step, None
        return step


class ReductionMixin:
    """Put before a vLLM multimodal class whose forward ends in ``language_model.model(...)``.

    Without our scheduler the model stays as in stock vLLM.
    """

    reduction: Reduction | None
    _cls_attention: ClsAttention | None = None
    """Set for towers with a CLS token."""
    _cls_rows: torch.Tensor | None = None
    """[rows of the step] attention of the CLS token at vision rows."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.reduction = None
        if is_active(vllm_config):
            self.reduction = Reduction(vllm_config, self.language_model.model)
            tower = getattr(self, "vision_tower", None)
            if isinstance(tower, CLIPVisionModel):
                self._cls_attention = ClsAttention(tower)
        else:
            logger.info("VTR is installed and not active: no --scheduler-cls of ours is set")

    @classmethod
    def get_model_state_cls(cls) -> type:
        """Runner V2's hook."""
        from vtr_vllm.engine.runner_v2 import ReducingModelState

        return ReducingModelState

    def embed_multimodal(self, **kwargs: object) -> Any:
        if self._cls_attention is None:
            return super().embed_multimodal(**kwargs)
        with self._cls_attention.captured() as attention:
            embeddings = super().embed_multimodal(**kwargs)
        return attach(embeddings, attention)

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Sequence[torch.Tensor] | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._cls_rows = None
        # vLLM passes an empty list on every step without images.
        if self._cls_attention is not None and multimodal_embeddings:
            assert is_multimodal is not None
            multimodal_embeddings, attention = detach(multimodal_embeddings)
            rows = torch.zeros(len(input_ids), device=attention.device)
            mask = is_multimodal.to(attention.device, non_blocking=True)
            self._cls_rows = rows.masked_scatter_(mask, attention)
        return super().embed_input_ids(
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        step = self.reduction.take_step() if self.reduction else None
        if step is not None:
            assert self.reduction is not None
            if step.plan.cuts:
                if inputs_embeds is None:
                    inputs_embeds = self.language_model.model.embed_input_ids(input_ids)
                return self.reduction.decoder.forward(
                    step, positions, inputs_embeds, self._cls_rows
                )
            self.reduction.decoder.install_slots(step, positions.shape[-1])
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
