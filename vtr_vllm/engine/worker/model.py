"""What makes a vLLM model class reducible."""

import logging
from typing import Any

from torch import nn
from vllm.config import VllmConfig

from vtr_vllm.engine.common.atp import check_modules
from vtr_vllm.engine.common.config import check_vllm_config, is_active
from vtr_vllm.engine.worker.model_reduction import Reduction
from vtr_vllm.engine.worker.runner_v2 import ReducingModelState

logger = logging.getLogger("vllm.vtr")


def decoder_of(model: Any) -> nn.Module:
    """The decoder of a vLLM multimodal model; some have no class with a head around it."""
    language_model = model.get_language_model()
    decoder: nn.Module = getattr(language_model, "model", language_model)
    return decoder


class ReductionMixin:
    """Put before a vLLM multimodal class; without our scheduler it stays as in stock vLLM."""

    reduction: Reduction | None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        if is_active(vllm_config):
            check_vllm_config(vllm_config)
            check_modules(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.reduction = None
        if is_active(vllm_config):
            self.reduction = Reduction(vllm_config, decoder_of(self))
        else:
            logger.info("VTR is installed and not active: no --scheduler-cls of ours is set")

    @classmethod
    def get_model_state_cls(cls) -> type:
        """Runner V2's hook."""
        return ReducingModelState
