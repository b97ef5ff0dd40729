"""ATP's modules on the device: what they say of the requests of a cut."""

from typing import Self

import torch
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

from vtr_vllm.atp.artefact import Artefact
from vtr_vllm.atp.module import grid_scores, mean_received
from vtr_vllm.engine.common.atp import folder_of


class Modules:
    """Those that the engine was started with, whose facts were checked; float32, on every rank alike."""

    def __init__(self, artefact: Artefact, device: torch.device) -> None:
        self._modules = artefact.modules.to(device)
        self._n_min = artefact.facts.n_min
        self._grid = grid_scores(*artefact.facts.grid).to(device)

    @classmethod
    def of(cls, vllm_config: VllmConfig, device: torch.device) -> Self | None:
        """Raises ConfigurationError for files that cannot be read."""
        folder = folder_of(vllm_config)
        return None if folder is None else cls(Artefact.load(folder), device)

    def score(
        self,
        layer: int,
        tokens: torch.Tensor,
        looks: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """Scores [A, L] float32 of the cut before ``layer``: what is above 0 stays.

        ``tokens`` [A, L] int64: vision-token number of each row, -1 for others. ``looks`` [2, A, L]: attention
        of all later vision tokens together, and mean attention of the text behind the image. ``values``
        [A, kv_heads of this rank, head_dim] of the prompt's last row.
        """
        received, asked = looks
        size = len(self._grid)
        slot = torch.where(tokens >= 0, tokens, size)

        def by_token(scores: torch.Tensor) -> torch.Tensor:
            spread = scores.new_zeros(len(scores), size + 1)
            return spread.scatter_(1, slot, scores)[:, :size]

        alive = by_token(torch.ones_like(received)) > 0
        found = self._modules.cut(self._modules.layers.index(layer)).margins(
            mean_received(by_token(received), alive.float()),
            by_token(asked),
            _of_all_ranks(values, state) if (state := self._modules.shape.state) else None,
            self._grid,
            alive,
            self._n_min,
        )
        return found.gather(1, tokens.clamp(min=0))


def _of_all_ranks(values: torch.Tensor, width: int) -> torch.Tensor:
    """Values [A, kv_heads of this tensor-parallel rank, head_dim] of all heads, [A, ``width``] float32."""
    if get_tensor_model_parallel_world_size() > 1:
        values = tensor_model_parallel_all_gather(values.contiguous(), dim=1)
        # Where there are more ranks than heads, neighbours hold the same one.
        values = values[:, :: values.shape[1] * values.shape[2] // width]
    return values.flatten(1).float()
