"""One request that will be reduced: everything about it that does not change from step to step."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vtr_vllm.errors import UnsupportedRequest, VTRError
from vtr_vllm.schedules import Plan, image_floors

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Unit:
    """One image of the prompt, or one frame of a video."""

    vision: IntArray
    """[n] positions of its vision tokens in the prompt, ascending."""
    seed: int = 0
    """The same for the same image in any prompt."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of its tokens in reading order; None: there is no such grid."""


@dataclass(frozen=True, eq=False)
class Part:
    """Positions of the prompt that one step must hold together: what drops tokens of them sees all."""

    start: int
    """The position of its first vision token."""
    end: int
    first: int
    """Vision tokens of the prompt before it."""
    units: tuple[Unit, ...]
    plan: Plan
    """What each layer keeps of its vision tokens."""

    @cached_property
    def vision(self) -> IntArray:
        """[n_vision] positions of its vision tokens."""
        return np.concatenate([unit.vision for unit in self.units])

    @cached_property
    def image_sizes(self) -> list[int]:
        """[images] vision tokens of each image."""
        return [len(unit.vision) for unit in self.units]


@dataclass(frozen=True, eq=False)
class ReducedRequest:
    """A schedule bound to a prompt, for the engine to follow.

    Guided by the question, the prompt has one part, from the first vision token to its end. With a
    local schedule each image, or frame of a video, is one.
    """

    prompt_len: int
    """Prompt tokens, vision tokens included."""
    parts: tuple[Part, ...]
    """In the order of their positions; at least one drops something, or may."""
    is_local: bool
    """Whether what is dropped of an image depends on nothing behind it."""
    trace: str | None = None
    """Name under which the worker keeps which vision tokens stayed; None: it keeps nothing."""
    per_image_floor: float = 0.0
    """What each of several images keeps whatever the others score; 0: one ranking for all."""

    @cached_property
    def plan(self) -> Plan:
        """All parts together."""
        if len(self.parts) == 1:
            return self.parts[0].plan
        plans = [part.plan for part in self.parts]
        counts = tuple(sum(column) for column in zip(*(plan.counts for plan in plans), strict=True))
        rules = {
            cut: rule
            for plan in reversed(plans)
            for cut, rule in zip(plan.cuts, plan.rules, strict=True)
        }
        cuts = tuple(sorted(rules))
        return Plan(sum(p.n_vision for p in plans), counts, cuts, tuple(rules[cut] for cut in cuts))

    @cached_property
    def is_adaptive(self) -> bool:
        """Whether the model says how many tokens stay, of those that the plan lets stay."""
        return self.plan.is_adaptive

    def with_plan(self, plan: Plan) -> "ReducedRequest":
        """The same request with other counts; of one part, as every adaptive one is."""
        (part,) = self.parts
        return replace(self, parts=(replace(part, plan=plan),))

    @cached_property
    def vision(self) -> IntArray:
        """[n_vision] positions of all vision tokens, ascending."""
        return np.concatenate([part.vision for part in self.parts])

    @property
    def first_vision(self) -> int:
        return self.parts[0].start

    @cached_property
    def instruction_len(self) -> int:
        """Prompt text tokens after the last vision token."""
        return self.prompt_len - 1 - int(self.vision[-1])

    @cached_property
    def dropped_by(self) -> IntArray:
        """[parts + 1, layers] vision tokens that each layer does not see of the first so many parts."""
        of_parts = [
            part.plan.n_vision - np.asarray(part.plan.counts, dtype=np.int64) for part in self.parts
        ]
        return np.concatenate([np.zeros_like(of_parts[:1]), np.cumsum(of_parts, axis=0)])

    @property
    def dropped(self) -> IntArray:
        """[layers] vision tokens that each layer does not see of the whole prompt."""
        return self.dropped_by[-1]

    @cached_property
    def _dropped(self) -> list[list[int]]:
        return self.dropped_by.T.tolist()

    @cached_property
    def _ends(self) -> list[int]:
        return [part.end for part in self.parts]

    @cached_property
    def _stored_behind(self) -> list[list[int]]:
        """[layers, parts] tokens that a layer stores once a part is done."""
        return (np.array(self._ends)[:, None] - self.dropped_by[1:]).T.tolist()

    def floors(self, kept: int) -> tuple[int, ...] | None:
        """Tokens that each image keeps for sure of ``kept``; None: the best of all images stay."""
        if self.is_local or not self.per_image_floor or len(self.parts[0].units) == 1:
            return None
        floors = image_floors(self.per_image_floor, kept, self.parts[0].image_sizes)
        return floors if any(floors) else None

    @cached_property
    def longest_part(self) -> int:
        """Tokens that one step must hold."""
        return max(part.end - part.start for part in self.parts)

    def parts_done(self, position: int) -> int:
        """How many parts end at ``position`` or before it."""
        return bisect_right(self._ends, position)

    def splits(self, position: int) -> bool:
        """Whether ``position`` is inside of a part."""
        done = self.parts_done(position)
        return done < len(self.parts) and self.parts[done].start < position

    def parts_of_step(self, computed: int, scheduled: int) -> tuple[int, int]:
        """How many parts are done before and behind a step over [computed, computed + scheduled).

        Raises VTRError for a step that covers only some positions of a part: the scheduler never
        makes one.
        """
        end = computed + scheduled
        before, behind = self.parts_done(computed), self.parts_done(end)
        for position, number in ((computed, before), (end, behind)):
            if self.splits(position):
                part = self.parts[number]
                raise VTRError(
                    f"a step over positions [{computed}, {end}) splits the part"
                    f" [{part.start}, {part.end}) of a reduced request"
                )
        return before, behind

    def clip(self, computed: int, scheduled: int) -> int:
        """The most tokens of ``scheduled`` that a step may take without splitting a part."""
        end = computed + scheduled
        behind = self.parts_done(end)
        if behind == len(self.parts) or self.parts[behind].start >= end:
            return scheduled
        return max(self.parts[behind].start - computed, 0)

    def stored_tokens(self, num_tokens: int, layer: int) -> int:
        """Tokens that ``layer`` stores once the first ``num_tokens`` positions are computed."""
        dropped = self._dropped[layer]
        if num_tokens >= self._ends[-1]:
            return num_tokens - dropped[-1]
        done = self.parts_done(num_tokens)
        start = self.parts[done].start
        if num_tokens <= start:
            return num_tokens - dropped[done]
        return max(num_tokens - dropped[done + 1], start - dropped[done])

    def filled_at(self, stored: int, layer: int) -> int:
        """The first position, inside of no part, before which ``layer`` stores ``stored`` tokens or more."""
        done = self._parts_within(stored - 1, layer)
        position = stored + self._dropped[layer][done]
        if done < len(self.parts) and position > self.parts[done].start:
            return self.parts[done].end
        return position

    def reached_with(self, stored: int, layer: int) -> int:
        """The last position, inside of no part, before which ``layer`` stores ``stored`` tokens or fewer."""
        done = self._parts_within(stored, layer)
        position = stored + self._dropped[layer][done]
        return min(position, self.parts[done].start) if done < len(self.parts) else position

    def _parts_within(self, stored: int, layer: int) -> int:
        """How many parts are done with at most ``stored`` tokens stored behind them."""
        return bisect_right(self._stored_behind[layer], stored)


def guided_request(
    plan: Plan,
    units: Sequence[Unit],
    prompt_len: int,
    trace: str | None = None,
    per_image_floor: float = 0.0,
) -> ReducedRequest:
    """A request whose last text, or all of it, is behind what it drops.

    ``plan`` is of all ``units`` together, which are in prompt order and have vision tokens. Raises UnsupportedRequest when
    the prompt ends with a vision token: its last position answers and asks, so it must be text.
    """
    _check_end(units, prompt_len)
    part = Part(int(units[0].vision[0]), prompt_len, 0, tuple(units), plan)
    return ReducedRequest(prompt_len, (part,), False, trace, per_image_floor)


def local_request(
    plans: Sequence[Plan], units: Sequence[Unit], prompt_len: int, trace: str | None = None
) -> ReducedRequest:
    """A request of which each unit, which has vision tokens, keeps what its own plan says.

    Raises UnsupportedRequest as ``guided_request``.
    """
    _check_end(units, prompt_len)
    parts = []
    first = 0
    for unit, plan in zip(units, plans, strict=True):
        start, end = int(unit.vision[0]), int(unit.vision[-1]) + 1
        parts.append(Part(start, end, first, (unit,), plan))
        first += plan.n_vision
    return ReducedRequest(prompt_len, tuple(parts), True, trace)


def _check_end(units: Sequence[Unit], prompt_len: int) -> None:
    if units[-1].vision[-1] == prompt_len - 1:
        raise UnsupportedRequest(
            "the prompt ends with a vision token, and a reduced request needs text after its"
            " last image; add the question after the image or ask for budget 1.0"
        )
