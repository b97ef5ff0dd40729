"""One request that will be reduced: everything about it that does not change from step to step."""

import enum
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vtr_vllm.errors import UnsupportedRequest, VTRError
from vtr_vllm.schedules import Plan, image_floors

IntArray = npt.NDArray[np.int64]


class Phase(enum.Enum):
    """What a step does with a reduced request."""

    PREFIX = "prefix"
    """Prompt text before the first vision token: nothing is dropped."""
    PREFILL = "prefill"
    """From at most the first vision token to at least the prompt's end: tokens are dropped."""
    DECODE = "decode"
    """Past the prompt: the dropped tokens are missing from the deeper bands' storage."""


@dataclass(frozen=True, eq=False)
class ReducedRequest:
    """A plan together with the prompt facts that the engine needs to follow it."""

    plan: Plan
    prompt_len: int
    """Prompt tokens, vision tokens included."""
    vision: IntArray
    """[n_vision] positions of the vision tokens in the prompt, ascending."""
    image_of: IntArray
    """[n_vision] which image (or video) each vision token belongs to."""
    seed: int
    """Seed of the random rank rule: the same for the same prompt, whatever runs beside it."""
    trace: str | None = None
    """Name under which the worker keeps which vision tokens stayed; None: it keeps nothing."""
    per_image_floor: float = 0.0
    """What each of several images keeps whatever the others score; 0: one ranking for all."""

    @cached_property
    def first_vision(self) -> int:
        return int(self.vision[0])

    @cached_property
    def instruction_len(self) -> int:
        """Prompt text tokens after the last vision token."""
        return self.prompt_len - 1 - int(self.vision[-1])

    @cached_property
    def dropped(self) -> IntArray:
        """[layers] vision tokens that each layer does not see."""
        return self.plan.n_vision - np.asarray(self.plan.counts, dtype=np.int64)

    @cached_property
    def image_sizes(self) -> list[int]:
        """[images] vision tokens of each image."""
        return np.bincount(self.image_of).tolist()

    def floors(self, kept: int) -> tuple[int, ...] | None:
        """Tokens that each image keeps for sure of ``kept``; None: the best of all images stay."""
        if not self.per_image_floor or len(self.image_sizes) == 1:
            return None
        floors = image_floors(self.per_image_floor, kept, self.image_sizes)
        return floors if any(floors) else None

    @property
    def range_len(self) -> int:
        """Tokens from the first vision token to the prompt's end: one step must hold them."""
        return self.prompt_len - self.first_vision

    def phase(self, computed: int, scheduled: int) -> Phase:
        """What a step over positions [computed, computed + scheduled) does.

        Raises VTRError for a step that covers only a part of the range: the scheduler never
        makes one.
        """
        end = computed + scheduled
        if end <= self.first_vision:
            return Phase.PREFIX
        if computed >= self.prompt_len:
            return Phase.DECODE
        if computed <= self.first_vision and end >= self.prompt_len:
            return Phase.PREFILL
        raise VTRError(
            f"a step over positions [{computed}, {end}) splits the range"
            f" [{self.first_vision}, {self.prompt_len}) of a reduced request"
        )

    def clip(self, computed: int, scheduled: int) -> int:
        """The most tokens of ``scheduled`` that a step may take without splitting the range."""
        end = computed + scheduled
        if end <= self.first_vision or end >= self.prompt_len:
            return scheduled
        return max(self.first_vision - computed, 0)

    def stored_tokens(self, num_tokens: int, layer: int) -> int:
        """Tokens that ``layer`` stores once the first ``num_tokens`` positions are computed."""
        if num_tokens <= self.first_vision:
            return num_tokens
        dropped = self.plan.n_vision - self.plan.counts[layer]
        return max(num_tokens - dropped, self.first_vision)


def reduced_request(
    plan: Plan,
    spans: Sequence[IntArray],
    prompt_token_ids: Sequence[int],
    trace: str | None = None,
    per_image_floor: float = 0.0,
) -> ReducedRequest:
    """Bind ``plan`` to a prompt.

    ``spans`` has the positions of the vision tokens of each image, in prompt order. Raises
    UnsupportedRequest when the prompt ends with a vision token: its last position answers and
    asks, so it must be text.
    """
    vision = np.concatenate(spans)
    if vision[-1] == len(prompt_token_ids) - 1:
        raise UnsupportedRequest(
            "the prompt ends with a vision token, and a reduced request needs text after its"
            " last image; add the question after the image or ask for budget 1.0"
        )
    return ReducedRequest(
        plan=plan,
        prompt_len=len(prompt_token_ids),
        vision=vision,
        image_of=np.repeat(np.arange(len(spans)), [len(span) for span in spans]),
        seed=zlib.crc32(np.asarray(prompt_token_ids, dtype="<i8").tobytes()),
        trace=trace,
        per_image_floor=per_image_floor,
    )
