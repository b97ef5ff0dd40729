"""Reduced requests and steps for property tests, and what a step comes to by brute force.

The brute force knows no counts: it draws which vision tokens each layer keeps, and looks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import ATTENTION_RULES, BLIND_RULES
from vtr_vllm.reduction.batch import StepRequest
from vtr_vllm.reduction.request import ReducedRequest, Unit, guided_request, local_request
from vtr_vllm.schedules import RankRule, make_plan
from vtr_vllm.schedules.keep_rates import cut_layers

LAYERS = 7


def request_of(spans, prompt_len, keep, rules, floor=0.0, local=False) -> ReducedRequest:
    """A request whose rules are in their short text; ``local``: each of ``spans`` is cut by itself."""
    units = [Unit(np.asarray(span, dtype=np.int64)) for span in spans]
    rules = [RankRule.parse(rule) for rule in rules]
    if local:
        plans = [make_plan(keep, rules, len(unit.vision)) for unit in units]
        return local_request(plans, units, prompt_len)
    plan = make_plan(keep, rules, sum(len(unit.vision) for unit in units))
    return guided_request(plan, units, prompt_len, per_image_floor=floor)


@st.composite
def reduced_requests(draw):
    """Uneven images with text anywhere between and inside them, and a curve that drops some.

    Few draws, each of many bits: requests are the larger part of what these tests cost.
    """
    tokens = draw(st.integers(1, 2**24 - 1))
    breaks = draw(st.integers(0, 2**24 - 1))
    spans: list[list[int]] = [[]]
    for position in range(tokens.bit_length()):
        if tokens >> position & 1:
            if spans[-1] and breaks >> position & 1:
                spans.append([])
            spans[-1].append(position)
    rates = [rate / 8 for rate in draw(st.lists(st.integers(0, 8), max_size=LAYERS))]
    # The last layer keeps nothing, so something is dropped even where a rate rounds to all.
    keep = [*sorted(([1.0] * LAYERS + rates)[-LAYERS + 1 :], reverse=True), 0.0]
    first_rule = draw(st.integers(0, 20))
    rules = []
    local = draw(st.booleans())
    for cut in cut_layers(keep, 1.0):
        allowed = BLIND_RULES + (ATTENTION_RULES if cut >= 2 and not local else [])
        allowed += ["previous"] if rules else []
        rules.append(allowed[(first_rule + len(rules)) % len(allowed)])
    floor = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0]))
    length = tokens.bit_length() + draw(st.integers(1, 6))
    return request_of(spans, length, keep, rules, floor, local)


@st.composite
def step_requests(draw):
    """One request of a step: every kind that the scheduler makes."""
    plain = st.builds(StepRequest, st.integers(0, 30), st.integers(1, 30), st.none())
    request = draw(st.none() | reduced_requests())
    if request is None:
        return draw(plain)
    kinds = ["prefill", "decode"] + (["prefix"] if request.first_vision else [])
    kind = draw(st.sampled_from([*kinds, "chunk"] if request.is_local else kinds))
    if kind == "chunk":  # from anywhere to anywhere, but inside of no image
        legal = whole_parts(request, request.prompt_len + 4)
        computed = draw(st.sampled_from(legal[:-1]))
        end = draw(st.sampled_from([end for end in legal if end > computed]))
    elif kind == "prefix":  # a chunk of the text before the image
        computed = draw(st.integers(0, request.first_vision - 1))
        end = draw(st.integers(computed + 1, request.first_vision))
    elif kind == "prefill":  # cold, or warm; behind the prompt, what a preempted request generated
        computed = draw(st.integers(0, request.first_vision))
        end = request.prompt_len + draw(st.integers(0, 4))
    else:  # one token, or the chunk of a preempted request that generated much
        computed = request.prompt_len + draw(st.integers(0, 20))
        end = computed + draw(st.sampled_from([1, 1, 1, 5]))
    return StepRequest(computed, end - computed, request)


def whole_parts(request: ReducedRequest, most: int) -> list[int]:
    """The positions up to ``most`` at which a step may begin or end."""
    return [
        position
        for position in range(most + 1)
        if not any(part.start < position < part.end for part in request.parts)
    ]


steps = st.lists(step_requests(), min_size=1, max_size=4)
band_lists = st.sets(st.integers(1, LAYERS - 1)).map(lambda starts: (0, *sorted(starts)))


@dataclass(frozen=True)
class Kept:
    """One request whose kept tokens are drawn: positions, storage and rows by counting."""

    step: StepRequest
    orders: list[np.ndarray]
    """Of each part [n_vision] vision-token numbers, the best first."""

    def positions(self, layer: int) -> np.ndarray:
        """Every position up to the step's end that ``layer`` keeps, ascending; all for layer -1."""
        end = self.step.computed + self.step.scheduled
        request = self.step.reduced
        if request is None or layer < 0:
            return np.arange(end)
        lost = [
            part.vision[order[part.plan.counts[layer] :]]
            for part, order in zip(request.parts, self.orders, strict=True)
            if part.end <= end
        ]
        return np.setdiff1d(np.arange(end), np.concatenate([np.zeros(0, dtype=np.int64), *lost]))

    def rows(self, layer: int) -> np.ndarray:
        """The positions that ``layer`` runs in this step; all of them for layer -1."""
        if layer < 0:
            return np.arange(self.step.computed, self.step.computed + self.step.scheduled)
        kept = self.positions(layer)
        return kept[kept >= self.step.computed]

    def storage(self, layer: int) -> np.ndarray:
        """Where ``layer`` stores each of its rows: the index among what it keeps."""
        return np.searchsorted(self.positions(layer), self.rows(layer))


def drawn_order(step: StepRequest, seed: int) -> Kept:
    """Any choice of kept tokens; sets nest from layer to layer."""
    parts = step.reduced.parts if step.reduced is not None else ()
    rng = np.random.default_rng(seed)
    return Kept(step, [rng.permutation(part.plan.n_vision) for part in parts])
