"""How many tokens hold a share of the attention: a count that no host knows beforehand."""

import torch


def fewest_holding(scores: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """[C] int64: the least number of the best of each row that hold ``mass`` of all that it has.

    ``scores`` [C, n] float32, none below 0, in any order, 0 where there is no token; ``mass`` [C] above 0
    and below 1. At least 1; where nothing has a score, n. The sums are float64: a row's count hangs on its
    scores alone. Does not wait for the device.
    """
    held = scores.double().sort(dim=-1, descending=True).values.cumsum(-1)
    wanted = mass.double()[:, None] * held[:, -1:]
    fewest = (held < wanted).sum(-1) + 1
    return fewest.where(held[:, -1] > 0, scores.shape[-1])
