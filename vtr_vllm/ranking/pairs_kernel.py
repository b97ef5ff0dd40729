"""The Triton kernel behind ``vtr_vllm.ranking.pairs``; imported where there is a GPU."""

import torch
import triton
import triton.language as tl


def farthest_first(
    apart: torch.Tensor, first: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``vtr_vllm.ranking.pairs.farthest_first`` in one launch: a program an image, whose tokens it
    holds in registers."""
    images, tokens = first.shape
    found = first.new_empty(images, most, dtype=torch.int64)
    adds, left = first.new_empty(images, most), torch.empty_like(first)
    _kernel[(images,)](
        apart.contiguous(),
        first.contiguous(),
        found,
        adds,
        left,
        tokens,
        most,
        TOKENS=triton.next_power_of_2(tokens),
    )
    return found, adds, left


# Not specialised: images of another size compile nothing until they need twice the room.
@triton.jit(do_not_specialize=["tokens", "most"])
def _kernel(  # type: ignore[no-untyped-def]
    apart,  # [images, tokens, tokens]
    first,  # [images, tokens]
    found,  # [images, most]
    adds,  # [images, most]
    left,  # [images, tokens]
    tokens,
    most,
    TOKENS: tl.constexpr,  # noqa: N803  (Triton's way)
):
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    here = token < tokens
    worth = tl.load(first + image * tokens + token, mask=here, other=-1.0)
    for place in range(most):
        # A number that is none would never win, and the padding would.
        best = tl.minimum(tl.argmax(worth, 0, tie_break_left=True), tokens - 1)
        tl.store(found + image * most + place, best.to(tl.int64))
        tl.store(adds + image * most + place, tl.max(worth, 0))
        pairs = apart + (image * tokens + best) * tokens
        distances = tl.load(pairs + token, mask=here, other=-1.0)
        worth = tl.where(place == 0, distances, tl.minimum(worth, distances))
    tl.store(left + image * tokens + token, worth, mask=here)
