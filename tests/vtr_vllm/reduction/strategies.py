"""Reduced requests and steps for property tests, and what a step comes to by brute force.

The brute force knows no counts: it draws which vision tokens each layer keeps, and looks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import ATTENTION_RULES, BLIND_RULES
from vtr_vllm.reduction.batch import StepRequest
from vtr_vllm.reduction.request import ReducedRequest, reduced_request
from vtr_vllm.schedules import RankRule, make_plan
from vtr_vllm.schedules.keep_rates import cut_layers

LAYERS = 7


def request_of(spans, prompt_len, keep, rules, floor=0.0) -> ReducedRequest:
    """A request with token ids 0, 1, 2, ... and rules in their short text."""
    spans = [np.asarray(span, dtype=np.int64) for span in spans]
    plan = make_plan(keep, [RankRule.parse(rule) for rule in rules], sum(map(len, spans)))
    return reduced_request(plan, spans, list(range(prompt_len)), per_image_floor=floor)


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
    for cut in cut_layers(keep, 1.0):
        allowed = BLIND_RULES + (ATTENTION_RULES if cut >= 2 else [])
        allowed += ["previous"] if rules else []
        rules.append(allowed[(first_rule + len(rules)) % len(allowed)])
    floor = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0]))
    return request_of(spans, tokens.bit_length() + draw(st.integers(1, 6)), keep, rules, floor)


@st.composite
def step_requests(draw):
    """One request of a step: every kind that the scheduler makes."""
    plain = st.builds(StepRequest, st.integers(0, 30), st.integers(1, 30), st.none())
    request = draw(st.none() | reduced_requests())
    if request is None:
        return draw(plain)
    kinds = ["prefill", "decode"] + (["prefix"] if request.first_vision else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "prefix":  # a chunk of the text before the image
        computed = draw(st.integers(0, request.first_vision - 1))
        end = draw(st.integers(computed + 1, request.first_vision))
    elif kind == "prefill":  # cold, or warm; behind the prompt, what a preempted request generated
        computed = draw(st.integers(0, request.first_vision))
        end = request.prompt_len + draw(st.integers(0, 4))
    else:  # one token, or the chunk of a preempted request that generated much
        computed = request.prompt_len + draw(st.integers(0, 20))
        end = computed + draw(st.sampled_from([1, 1, 1, 5]))
    return StepRequest(computed, end - computed, request)


steps = st.lists(step_requests(), min_size=1, max_size=4)
band_lists = st.sets(st.integers(1, LAYERS - 1)).map(lambda starts: (0, *sorted(starts)))


@dataclass(frozen=True)
class Kept:
    """One request whose kept tokens are drawn: positions, storage and rows by counting."""

    step: StepRequest
    order: np.ndarray
    """[n_vision] vision-token numbers, the best first."""

    def positions(self, layer: int) -> np.ndarray:
        """Every position up to the step's end that ``layer`` keeps, ascending."""
        end = self.step.computed + self.step.scheduled
        request = self.step.reduced
        if request is None:
            return np.arange(end)
        lost = request.vision[self.order[request.plan.counts[layer] :]]
        return np.setdiff1d(np.arange(end), lost)

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
    count = len(step.reduced.vision) if step.reduced is not None else 0
    return Kept(step, np.random.default_rng(seed).permutation(count))
