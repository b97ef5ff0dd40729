"""The durable facts of one reduced request."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.reduction.strategies import LAYERS, reduced_requests, request_of
from vtr_vllm.errors import UnsupportedRequest, VTRError
from vtr_vllm.reduction.request import Phase, reduced_request
from vtr_vllm.schedules import RankRule, make_plan

FEW = settings(deadline=None, max_examples=60)

# 3 words, an image of 4 tokens, 3 words: range [3, 10), layers 2 and 3 keep 1 of 4.
KEEP, RULES = [1, 1, 0.25, 0.25], ["last"]
REQUEST = request_of([range(3, 7)], 10, KEEP, RULES)


def test_facts():
    assert REQUEST.first_vision == 3
    assert REQUEST.range_len == 7
    assert REQUEST.instruction_len == 3
    assert REQUEST.dropped.tolist() == [0, 0, 3, 3]


def test_uneven_images():
    request = request_of([[1], [3, 4, 6], [7, 8]], 10, KEEP, RULES)
    assert request.vision.tolist() == [1, 3, 4, 6, 7, 8]
    assert request.image_of.tolist() == [0, 1, 1, 1, 2, 2]
    assert request.instruction_len == 1


def test_floors():
    spans = [range(1, 9), range(10, 42)]
    fair = request_of(spans, 50, KEEP, RULES, floor=0.5)
    assert fair.floors(20) == (1 + int(0.5 * 18 * 7 / 38), 1 + int(0.5 * 18 * 31 / 38))
    assert fair.floors(1) is None, "one token cannot be shared by two images"
    assert request_of(spans, 50, KEEP, RULES).floors(20) is None
    assert request_of([range(1, 9)], 50, KEEP, RULES, floor=1.0).floors(4) is None, "one image"


@pytest.mark.parametrize(
    ("computed", "scheduled", "phase"),
    [
        (0, 1, Phase.PREFIX),
        (0, 3, Phase.PREFIX),
        (2, 1, Phase.PREFIX),
        (0, 10, Phase.PREFILL),
        (3, 7, Phase.PREFILL),
        (1, 12, Phase.PREFILL),  # preempted: generated tokens follow the prompt
        (10, 1, Phase.DECODE),
        (57, 3, Phase.DECODE),
    ],
)
def test_phases(computed, scheduled, phase):
    assert REQUEST.phase(computed, scheduled) is phase


@pytest.mark.parametrize(
    ("computed", "scheduled"), [(0, 4), (0, 9), (3, 6), (4, 6), (9, 1), (5, 1)]
)
def test_a_step_that_splits_the_range_is_an_error_of_ours(computed, scheduled):
    with pytest.raises(VTRError, match="splits the range") as caught:
        REQUEST.phase(computed, scheduled)
    assert type(caught.value) is VTRError


def splits(request, computed, scheduled):
    try:
        request.phase(computed, scheduled)
    except VTRError:
        return True
    return False


@given(reduced_requests(), st.data())
@FEW
def test_clip_takes_the_most_that_does_not_split_the_range(request, data):
    computed = data.draw(
        st.integers(0, request.first_vision)
        | st.integers(request.prompt_len, request.prompt_len + 20)
    )
    at_the_end = request.prompt_len - computed + data.draw(st.integers(-1, 1))
    scheduled = data.draw(st.just(max(at_the_end, 1)) | st.integers(1, 50))
    possible = [n for n in range(scheduled + 1) if not splits(request, computed, n)]
    assert request.clip(computed, scheduled) == max(possible)


@given(reduced_requests(), st.integers(0, 20))
@FEW
def test_stored_tokens_counts_what_a_layer_keeps(request, generated):
    for layer in range(LAYERS):
        for num_tokens in range(request.first_vision + 1):
            assert request.stored_tokens(num_tokens, layer) == num_tokens
        num_tokens = request.prompt_len + generated
        kept = request.plan.counts[layer]
        text = num_tokens - len(request.vision)
        assert request.stored_tokens(num_tokens, layer) == text + kept


@given(reduced_requests())
@FEW
def test_stored_tokens_never_fall_as_tokens_come_and_never_rise_with_depth(request):
    table = np.array(
        [
            [request.stored_tokens(tokens, layer) for layer in range(LAYERS)]
            for tokens in range(request.prompt_len + 5)
        ]
    )
    assert (np.diff(table, axis=0) >= 0).all()
    assert (np.diff(table, axis=1) <= 0).all()
    assert (table[:, 0] <= np.arange(len(table))).all()


def test_a_prompt_that_ends_with_a_vision_token_is_refused():
    plan = make_plan(KEEP, [RankRule.parse("last")], 4)
    with pytest.raises(UnsupportedRequest, match="ends with a vision token"):
        reduced_request(plan, [np.arange(3, 7)], list(range(7)))
    assert reduced_request(plan, [np.arange(3, 7)], list(range(8))).instruction_len == 1


def test_the_seed_depends_on_the_prompt_only():
    def seed(prompt, keep=0.25, vision=range(1, 5)):
        plan = make_plan([1, 1, keep, keep], [RankRule.parse("random")], len(vision))
        return reduced_request(plan, [np.asarray(vision)], prompt).seed

    prompt = [7, 5, 5, 5, 5, 8]
    assert seed(prompt) == seed(tuple(prompt)) == seed(np.array(prompt, dtype=np.int32))
    assert seed(prompt) == seed(prompt, keep=0.5) == seed(prompt, vision=range(2, 5))
    assert seed(prompt) != seed([7, 5, 5, 5, 5, 9])
    assert seed(prompt) != seed([5, 7, 5, 5, 5, 8])
