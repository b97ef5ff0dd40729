"""Attention of the vision tower's CLS token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from vtr_vllm.errors import ScheduleError
from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rule import Need
from vtr_vllm.ranking.rules.grid import even_order

if TYPE_CHECKING:
    import torch

Pick = Literal["tokens", "rows", "spread"]


@dataclass(frozen=True)
class Cls(ImageRule):
    """Attention of the vision tower's CLS token to each patch (VTC-CLS, arXiv 2412.05819).

    ``pick``: ``rows`` takes whole rows of the image, by their sum (FoPru, arXiv 2411.14164); ``spread``
    takes by turns what has most attention and what is next on an even grid, as ``grid`` (LLaVA-PruMerge+,
    arXiv 2403.15388). Where there is no grid, each token is a row, and even is over the sequence.
    """

    pick: Pick = "tokens"

    name = "cls"
    needs = frozenset({Need.TOWER})
    options: ClassVar[Mapping[str, tuple[str, object]]] = {
        "rows": ("pick", "rows"),
        "spread": ("pick", "spread"),
    }

    def __post_init__(self) -> None:
        if self.pick not in get_args(Pick):
            raise ScheduleError(
                f"rank rule cls with pick={self.pick!r}; it is one of {', '.join(get_args(Pick))}"
            )

    @property
    def scores_are_weights(self) -> bool:
        return self.pick == "tokens"

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        attention = images.cls_attention
        assert attention is not None
        if self.pick == "rows" and images.grid is not None:
            by_row = attention.unflatten(1, images.grid)
            attention = by_row.sum(-1, keepdim=True).expand_as(by_row).flatten(1)
        elif self.pick == "spread":
            attention = _by_turns(attention, images)
        return images.there(attention)


def _by_turns(attention: torch.Tensor, images: ImageInputs) -> torch.Tensor:
    """[U, N] float32: minus twice the place by ``attention``, or by the grid and a half, if that is less."""
    import torch

    from vtr_vllm.upload import upload

    order = attention.argsort(dim=1, descending=True, stable=True)
    turn = 2 * torch.arange(images.size, device=order.device).expand_as(order)
    places = torch.empty_like(order).scatter_(1, order, turn)
    even = upload(even_order(images), attention.device)
    return -torch.minimum(places, 2 * even + 1).float()
