"""Which images of a cut are scored together by a rule that looks at images alone, and their rows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.reduction.batch import RequestCut
from vtr_vllm.reduction.gather import Rows
from vtr_vllm.upload import upload


def is_image(cut: RequestCut) -> bool:
    """Whether a member of a cut has one image, which is scored with others of its form."""
    return len(cut.part.units) == 1 and isinstance(cut.rule, ImageRule)


def images_alike(members: Sequence[RequestCut]) -> list[list[int]]:
    """Members of a cut that have one image each, in groups of one rule, one form and one size.

    A guided one ends with text, as what pads it then does: however long the text is.
    """
    groups = defaultdict(list)
    for place, cut in enumerate(members):
        if is_image(cut):
            rows = cut.num_rows if cut.request.is_local else None
            form = (cut.part.plan.n_vision, cut.vision_before, rows)
            groups[cut.rule, form, cut.part.units[0].grid].append(place)
    return list(groups.values())


@dataclass(frozen=True, eq=False)
class ImageRows:
    """U images of one group, of which n tokens each are still there, in m rows at most."""

    rule: ImageRule
    cuts: Sequence[RequestCut]
    rows: torch.Tensor
    """[U, n] rows of the vision tokens before the cut."""
    tokens: torch.Tensor
    """[U, n] int64: their numbers within their image."""
    index: torch.Tensor | None
    """[U] int64: which members of the cut; None: all."""
    places: torch.Tensor | None
    """[U, n] int64: their places among the m rows; None: all rows are of vision tokens."""

    @classmethod
    def of(cls, members: Sequence[RequestCut], alike: Sequence[int], rows: Rows) -> Self:
        cuts = [members[place] for place in alike]
        count, length = cuts[0].vision_before, max(cut.num_rows for cut in cuts)
        own = rows.of_members[:, :length]
        index = None
        if len(alike) < len(members):
            index = upload(torch.tensor(alike), own.device)
            own = own.index_select(0, index)
        tokens = rows.vision.index_select(0, own.reshape(-1)).view(own.shape)
        places = None
        if count < length:
            # How many are text is known on the host: nothing waits for the device.
            places = (tokens < 0).byte().sort(dim=1, stable=True).indices[:, :count]
            own, tokens = own.gather(1, places), tokens.gather(1, places)
        rule = cuts[0].rule
        assert isinstance(rule, ImageRule)
        return cls(rule, cuts, own, tokens, index, places)

    def spread(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [U, n] over the m rows of each member, [U, m]."""
        if self.places is None:
            return scores
        spread = scores.new_zeros(len(scores), max(cut.num_rows for cut in self.cuts))
        return spread.scatter_(1, self.places, scores)
