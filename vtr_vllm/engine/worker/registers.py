"""Learned registers: embeddings that follow those of every image (Victor, arXiv 2410.14072, section 3)."""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig

from vtr_vllm.engine.common.registers import registers_of
from vtr_vllm.engine.worker.model import ReductionMixin


class RegistersMixin(ReductionMixin):
    """Put before a class whose images may be followed by registers, reduced or not."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        model = vllm_config.model_config
        count = registers_of(model.hf_config)
        self.registers: nn.Parameter | None
        empty = torch.empty(count, model.get_hidden_size(), dtype=model.dtype)
        weight = nn.Parameter(empty, requires_grad=False) if count else None
        self.register_parameter("registers", weight)

    def embed_multimodal(self, **kwargs: object) -> Any:
        """Embeddings of each image [vision tokens + registers, hidden]."""
        embeddings = super().embed_multimodal(**kwargs)
        if self.registers is None:
            return embeddings
        return [torch.cat([image, self.registers]) for image in embeddings]
