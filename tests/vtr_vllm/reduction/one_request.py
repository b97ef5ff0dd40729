"""What stays of the rows of one request that stands alone in its step."""

from types import SimpleNamespace

import numpy as np
import torch

from vtr_vllm.reduction.batch import BatchPlan
from vtr_vllm.reduction.gather import Rows


def keep_best(scores, vision, kept_rows):
    """Rows, ascending: all text, then the best vision tokens; ``vision`` [rows] is -1 for text."""
    return _cut(scores, vision, kept_rows, None, None)


def keep_best_of_each(scores, image, kept_rows, floors):
    """The same, each image with its floor for sure; ``image`` [rows] is -1 for text."""
    return _cut(scores, image, kept_rows, image.numpy(), floors)


def _cut(scores, vision, kept_rows, image, floors):
    # A row of text behind all others, as every prompt that is guided has.
    scores = torch.nn.functional.pad(scores, (0, 1))
    vision = torch.nn.functional.pad(vision, (0, 1), value=-1)
    image = None if image is None else np.append(image, -1)
    member = SimpleNamespace(
        first_row=0,
        num_rows=len(vision),
        kept_rows=kept_rows + 1,
        floors=floors,
    )
    plan = BatchPlan(np.array([len(vision)]), (), {0: (member,)}, vision.numpy(), image)
    return Rows(plan, torch.device("cpu")).cut((member,), scores[None]).long()[:-1]
