"""How many tokens hold a share of the attention: a count that no host knows beforehand."""

import torch


def fewest_holding(scores: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """[C] int64: the least number of the best of each row that hold ``mass`` of all that it has.

    ``scores`` [C, n] float32, none below 0, in any order, 0 where there is no token; ``mass`` [C] above 0
    and below 1. At least 1. The sums are float64, so that neighbours in a batch do not move them. Does not
    wait for the device.
    """
    held = scores.double().sort(dim=-1, descending=True).values.cumsum(-1)
    wanted = mass.double()[:, None] * held[:, -1:]
    return (held < wanted).sum(-1) + 1
