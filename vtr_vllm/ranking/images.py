"""What a rule that looks at images alone is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageInputs:
    """U images (or frames) of N vision tokens each at one cut, where n of each are still there."""

    tokens: torch.Tensor
    """[U, n] int64: which of its image's tokens are there, ascending."""
    size: int
    """N."""
    grid: tuple[int, int] | None
    """(rows, columns) of each image's N tokens, in reading order; None: there is no such grid."""
    seeds: Sequence[int]
    """[U] of each image: the same for the same image in any prompt."""
    registers: int = 0
    """How many of the N are registers; they are the last ones."""
    embeddings: torch.Tensor | None = None
    """[U, N, hidden] input embeddings. This and what follows: only where the rule needs it."""
    states: torch.Tensor | None = None
    """[U, n, hidden] what the layer behind the cut would get: the residual stream."""
    cls_attention: torch.Tensor | None = None
    """[U, N] attention of the vision tower's CLS token."""

    def there(self, scores: torch.Tensor) -> torch.Tensor:
        """Of scores [U, N], on the device or the host, those of the tokens that are there, [U, n]."""
        from vtr_vllm.upload import upload

        return upload(scores, self.tokens.device).gather(1, self.tokens)
