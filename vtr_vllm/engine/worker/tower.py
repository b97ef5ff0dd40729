"""The attention of a vision tower's CLS token, carried with the image's embeddings.

vLLM runs the tower once an image and keeps the embeddings, for other requests too, in a cache that
knows nothing but embeddings. So the attention rides along as two more columns: its value in the
embeddings' type, and the remainder, since bf16 alone would round many patches to a tie.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.clip import CLIPVisionModel

from vtr_vllm.engine.worker.registers import RegistersMixin
from vtr_vllm.engine.worker.scoring import combine_heads

_COLUMNS = 2


class ClsAttention:
    """Reads the last layer of a CLIP tower that is computed for the features."""

    def __init__(self, tower: CLIPVisionModel) -> None:
        self._layer = tower.vision_model.encoder.layers[-1].self_attn

    @contextmanager
    def captured(self) -> Iterator[list[torch.Tensor]]:
        """Collect [images, patches] float32 for every run of the tower inside the context."""
        collected: list[torch.Tensor] = []

        def keep(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            query, key = args[0][:, :1].float(), args[1].float()
            heads = self._layer.num_heads_per_partition
            query, key = query.unflatten(-1, (heads, -1)), key.unflatten(-1, (heads, -1))
            logits = torch.einsum("bqhd,bkhd->bhk", query, key) * self._layer.scale
            merged = logits.softmax(-1).mean(1)
            if self._layer.tp_size > 1:
                merged = combine_heads(merged, "mean")
            collected.append(merged[:, 1:])

        handle = self._layer.attn.register_forward_pre_hook(keep)
        try:
            yield collected
        finally:
            handle.remove()


def attach(
    embeddings: torch.Tensor | Sequence[torch.Tensor], attention: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Add the columns to each image's embeddings [patches, hidden].

    ``attention`` is empty for images that came as embeddings: no tower saw them, and NaN says so, as
    it does of registers.
    """
    flat = [row for rows in attention for row in rows]
    widened = []
    for index, image in enumerate(embeddings):
        exact = image.new_full((len(image),), torch.nan, dtype=torch.float32)
        if flat:
            exact[: len(flat[index])] = flat[index]
        value = exact.to(image.dtype)
        remainder = (exact - value.float()).to(image.dtype)
        widened.append(torch.cat([image, value[:, None], remainder[:, None]], dim=-1))
    return widened


def detach(
    embeddings: Sequence[torch.Tensor], hidden: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Take the columns behind ``hidden`` off again: (embeddings, attention [rows] float32).

    What came by another way than the tower has no such columns (vLLM takes a prompt_embeds part of a
    chat as it is), and NaN for its attention.
    """
    attention = [
        item[:, hidden:].float().sum(-1)
        if item.shape[-1] > hidden
        else item.new_full((len(item),), torch.nan, dtype=torch.float32)
        for item in embeddings
    ]
    return [item[:, :hidden] for item in embeddings], torch.cat(attention)


class ClsReductionMixin(RegistersMixin):
    """Put before a class whose vision tokens are the patches of its ``vision_tower``."""

    _cls_attention: ClsAttention | None = None
    """Set for towers with a CLS token, while reduction is on."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        tower = getattr(self, "vision_tower", None)
        if self.reduction is not None and isinstance(tower, CLIPVisionModel):
            self._cls_attention = ClsAttention(tower)

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
        if self._cls_attention is not None:
            assert self.reduction is not None
            self.reduction.cls_rows = None
            # vLLM passes an empty list on every step without images.
            if multimodal_embeddings:
                assert is_multimodal is not None
                multimodal_embeddings, attention = detach(
                    multimodal_embeddings, self.reduction.geometry.hidden_size
                )
                rows = torch.zeros(len(input_ids), device=attention.device)
                mask = is_multimodal.to(attention.device, non_blocking=True)
                self.reduction.cls_rows = rows.masked_scatter_(mask, attention)
        embedded: torch.Tensor = super().embed_input_ids(
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded
