"""Farthest-first order from the distances of all pairs of an image's tokens: token after token, and for
a device one kernel."""

import numpy as np
import torch

from vtr_vllm.ranking.distances import chosen_greedily, told_apart, worth_of_the_first
from vtr_vllm.ranking.greedy import scores_of_places

MOST_TOKENS = 2048
"""Of an image whose pairs are all looked at."""
LEAST_TOKENS = 16
"""Of an image as models have them."""
PAIRS_BYTES = 64 << 20
"""Of the distances that are held at a time; one image's are 16 MiB at most."""


def farthest_first_scores(states: torch.Tensor) -> torch.Tensor:
    """[U, n] float32 minus each token's place, of ``states`` [U, n, hidden], n at most ``MOST_TOKENS``.

    ``vtr_vllm.ranking.distances.Distances`` without blocks. Images are parted the same way whatever
    stands beside them.
    """
    tokens = states.shape[1]
    together = max(1, PAIRS_BYTES // (4 * tokens * tokens))
    made = [_scores(images) for images in states.split(together)]
    return made[0] if len(made) == 1 else torch.cat(made)


def _scores(states: torch.Tensor) -> torch.Tensor:
    rows = states.float()
    tokens = rows.shape[1]
    # What is no number is far from nothing: it must not lead the kernel out of its rows.
    mean = torch.nn.functional.normalize(rows.mean(1, keepdim=True), dim=-1).nan_to_num()
    directions = torch.nn.functional.normalize(rows, dim=-1).nan_to_num()
    first = worth_of_the_first(torch.bmm(directions, mean.mT).squeeze(-1))
    apart = told_apart(torch.bmm(directions, directions.mT).neg_().add_(1))
    apart.diagonal(dim1=1, dim2=2).zero_()  # of a row of zeros, too: none is taken twice
    found, adds, left = farthest_first(apart, first, chosen_greedily(tokens))
    numbers = torch.arange(tokens, device=rows.device, dtype=torch.float32)
    # A token that adds nothing waits for the end. It may be one that has been taken.
    places = torch.where(adds > 0, numbers[: adds.shape[1]], tokens)
    place = torch.full_like(first, tokens).scatter_reduce_(1, found, places, "amin")
    return scores_of_places(place, left)


def compile_kernels(device: torch.device) -> None:
    """Compile what would be compiled for the first image of each size, from ``LEAST_TOKENS`` on."""
    if device.type != "cuda":
        return
    tokens = LEAST_TOKENS
    while tokens <= MOST_TOKENS:
        worth = torch.zeros(1, tokens, device=device)
        farthest_first(worth.expand(tokens, -1)[None], worth, 1)
        tokens *= 2


@torch.library.custom_op("vtr::farthest_first", mutates_args=(), device_types="cpu")
def farthest_first(
    apart: torch.Tensor, first: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``most`` tokens of U images, each the one that adds most: ``first`` [U, n] at first, then the
    distance, of ``apart`` [U, n, n], to the nearest that was taken.

    Returns the tokens [U, most] int64, what they added [U, most], and what each token would add then
    [U, n]. Of equal ones the earlier is taken.
    """
    found = np.empty((len(apart), most), np.int64)
    adds = np.empty((len(apart), most), np.float32)
    left = first.numpy().copy()
    for image, pairs in enumerate(apart.numpy()):
        worth = left[image]
        for place in range(most):
            best = worth.argmax()
            found[image, place], adds[image, place] = best, worth[best]
            if place:
                np.minimum(worth, pairs[best], out=worth)
            else:
                worth[:] = pairs[best]
    return torch.from_numpy(found), torch.from_numpy(adds), torch.from_numpy(left)


@farthest_first.register_fake
def _shapes(
    apart: torch.Tensor, first: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = first.new_empty(len(apart), most, dtype=torch.int64)
    return found, first.new_empty(len(apart), most), torch.empty_like(first)


@farthest_first.register_kernel("cuda")
def _on_gpu(
    apart: torch.Tensor, first: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from vtr_vllm.ranking.pairs_kernel import farthest_first

    return farthest_first(apart, first, most)
