"""What a rank rule may look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtr_vllm.ranking.images import ImageInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RankInputs:
    """One request at one cut. ``rows`` are its rows just before the cut."""

    vision: torch.Tensor
    """[rows] int64: vision-token number, -1 for text."""
    image_sizes: Sequence[int]
    """[images] vision tokens of each image before any cut, in the order of their numbers."""
    vision_rows: int
    """Rows of vision tokens."""
    seeds: Sequence[int]
    """[images] the same for the same image in any prompt."""
    grids: Sequence[tuple[int, int] | None]
    """[images] (rows, columns) of its tokens in reading order; None: there is no such grid."""
    registers: int = 0
    """How many of each image's tokens are registers; they are its last ones."""
    embeddings: torch.Tensor | None = None
    """[n_vision, hidden] input embeddings of the vision tokens; this and the others only where the rule
    needs it."""
    states: torch.Tensor | None = None
    """[rows, hidden] what the layer behind the cut would get: the residual stream."""
    cls_attention: torch.Tensor | None = None
    """[n_vision] attention of the vision tower's CLS token."""
    previous: torch.Tensor | None = None
    """[n_vision] scores of the previous cut."""

    @property
    def n_vision(self) -> int:
        return sum(self.image_sizes)

    def of_tokens(self, scores: torch.Tensor) -> torch.Tensor:
        """Spread scores [n_vision], from the device or the host, over the rows."""
        from vtr_vllm.upload import upload

        return upload(scores, self.vision.device)[self.vision.clamp(min=0)]

    def images(self) -> Iterator[ImageInputs]:
        """Each image with all of its tokens: for rules that look at nothing but those."""
        import torch

        first = 0
        for size, seed, grid in zip(self.image_sizes, self.seeds, self.grids, strict=True):
            own = slice(first, first + size)
            first += size
            if size:
                yield ImageInputs(
                    tokens=torch.arange(size, device=self.vision.device)[None],
                    size=size,
                    grid=grid,
                    seeds=[seed],
                    registers=self.registers,
                    embeddings=None if self.embeddings is None else self.embeddings[None, own],
                    cls_attention=None
                    if self.cls_attention is None
                    else self.cls_attention[None, own],
                )

    def vision_places(self) -> torch.Tensor:
        """[vision rows] places of the vision tokens among the rows, ascending."""
        # How many is known on the host: nothing waits for the device.
        return (self.vision < 0).byte().sort(stable=True).indices[: self.vision_rows]

    def as_one_image(self) -> ImageInputs:
        """All vision tokens that are still there as one image's."""
        assert self.states is not None
        places = self.vision_places()
        return ImageInputs(
            tokens=self.vision[places][None],
            size=self.n_vision,
            grid=self.grids[0] if len(self.grids) == 1 else None,
            seeds=self.seeds[:1],
            states=self.states[None, places],
        )
