"""How the vision tokens are ordered at a cut; what it computes is in ``vtr_vllm.reduction``."""

import re
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

from vtr_vllm.errors import ScheduleError
from vtr_vllm.schedules.strict_json import show

Score = Literal["last", "instruction", "saliency", "cls", "random", "previous"]
Heads = Literal["mean", "max"]

_ATTENTION = ("last", "instruction")
_QUESTION_BLIND = ("saliency", "cls", "random")
_TEXT = re.compile(rf"({'|'.join(get_args(Score))})(-norope)?(-max)?")
_FORMS = "last or instruction, each with -norope and/or -max; saliency; cls; random; previous"


@dataclass(frozen=True)
class RankRule:
    """One way to order the vision tokens at a cut; the best-ranked are kept.

    ``score``:

    * ``last``: attention probability from the last prompt token to the vision token, softmax
      over every key it sees, at the rank layer (FastV, arXiv 2403.06764, its code)
    * ``instruction``: the same, mean over the prompt text after the last vision token
    * ``saliency``: distance of the token's embedding from the median of its image's embeddings
    * ``cls``: attention of the vision tower's CLS token (VTC-CLS, arXiv 2412.05819)
    * ``random``: a seeded random order; the baseline that every score must beat
    * ``previous``: the order of the previous cut once more (rank once, cut often)

    ``rope=False`` scores without rotary positions: with them the bottom of the image is favoured
    (FEATHER, arXiv 2412.13180). ``heads`` says how attention heads are merged: ``mean`` as
    FastV, ``max`` as FitPrune (arXiv 2409.10197). Both only mean something for attention, so
    any other score refuses a changed value with ScheduleError.
    """

    score: Score
    rope: bool = True
    heads: Heads = "mean"

    def __post_init__(self) -> None:
        if self.score not in get_args(Score):
            raise ScheduleError(f"rank score {show(self.score)} is unknown; use {_FORMS}")
        if not isinstance(self.rope, bool) or self.heads not in get_args(Heads):
            raise ScheduleError(
                f"rank rule {self.score} with rope={show(self.rope)}, heads={show(self.heads)};"
                " rope is True or False, heads is 'mean' or 'max'"
            )
        if not self.needs_attention and (not self.rope or self.heads != "mean"):
            raise ScheduleError(
                f"rank rule {self.score} uses no attention, so it takes neither norope nor max;"
                f" use {_FORMS}"
            )

    @property
    def needs_attention(self) -> bool:
        """Whether a rank layer's queries and keys are read; such a cut is never before index 2."""
        return self.score in _ATTENTION

    @property
    def question_blind(self) -> bool:
        """Whether the order depends on the image alone; such a cut may be before layer 0."""
        return self.score in _QUESTION_BLIND

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read the short form, such as ``last-norope-max``; raises ScheduleError."""
        match = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ScheduleError(f"rank rule {show(text)} is unknown; use {_FORMS}")
        score, norope, largest = match.groups()
        return cls(cast(Score, score), rope=not norope, heads="max" if largest else "mean")

    def __str__(self) -> str:
        return (
            self.score + ("" if self.rope else "-norope") + ("-max" if self.heads == "max" else "")
        )
