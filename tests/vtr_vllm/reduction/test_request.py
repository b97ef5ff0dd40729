"""The durable facts of one reduced request."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.reduction.strategies import (
    LAYERS,
    reduced_requests,
    request_of,
    whole_parts,
)
from vtr_vllm.errors import UnsupportedRequest, VTRError

FEW = settings(deadline=None, max_examples=60)

# 3 words, an image of 4 tokens, 3 words: range [3, 10), layers 2 and 3 keep 1 of 4.
KEEP, RULES = [1, 1, 0.25, 0.25], ["last"]
REQUEST = request_of([range(3, 7)], 10, KEEP, RULES)


def test_facts():
    assert REQUEST.first_vision == 3
    assert REQUEST.longest_part == 7
    assert REQUEST.instruction_len == 3
    assert REQUEST.dropped.tolist() == [0, 0, 3, 3]


def test_uneven_images():
    request = request_of([[1], [3, 4, 6], [7, 8]], 10, KEEP, RULES)
    assert request.vision.tolist() == [1, 3, 4, 6, 7, 8]
    assert request.parts[0].image_sizes == [1, 3, 2]
    assert request.instruction_len == 1


def test_floors():
    spans = [range(1, 9), range(10, 42)]
    fair = request_of(spans, 50, KEEP, RULES, floor=0.5)
    assert fair.floors(20) == (1 + int(0.5 * 18 * 7 / 38), 1 + int(0.5 * 18 * 31 / 38))
    assert fair.floors(1) is None, "one token cannot be shared by two images"
    assert request_of(spans, 50, KEEP, RULES).floors(20) is None
    assert request_of([range(1, 9)], 50, KEEP, RULES, floor=1.0).floors(4) is None, "one image"


@pytest.mark.parametrize(
    ("computed", "scheduled", "parts"),
    [
        (0, 1, (0, 0)),
        (0, 3, (0, 0)),
        (2, 1, (0, 0)),
        (0, 10, (0, 1)),
        (3, 7, (0, 1)),
        (1, 12, (0, 1)),  # preempted: generated tokens follow the prompt
        (10, 1, (1, 1)),
        (57, 3, (1, 1)),
    ],
)
def test_parts_of_a_step(computed, scheduled, parts):
    assert REQUEST.parts_of_step(computed, scheduled) == parts


def test_a_local_request_has_a_part_for_each_image():
    request = request_of([[1], [3, 4, 6], [7, 8]], 10, [1, 0.5], ["saliency"], local=True)
    assert [(part.start, part.end, part.first) for part in request.parts] == [
        (1, 2, 0),
        (3, 7, 1),
        (7, 9, 4),
    ]
    assert request.plan.counts == (6, 1 + 2 + 1)
    assert (request.first_vision, request.longest_part, request.instruction_len) == (1, 4, 1)
    assert request.dropped_by.tolist() == [[0, 0], [0, 0], [0, 1], [0, 2]]
    assert request.parts_of_step(2, 5) == (1, 2)
    assert request.parts_of_step(0, 3) == (0, 1)


@pytest.mark.parametrize(
    ("computed", "scheduled"), [(0, 4), (0, 9), (3, 6), (4, 6), (9, 1), (5, 1)]
)
def test_a_step_that_splits_a_part_is_an_error_of_ours(computed, scheduled):
    with pytest.raises(VTRError, match="splits the part") as caught:
        REQUEST.parts_of_step(computed, scheduled)
    assert type(caught.value) is VTRError


def splits(request, computed, scheduled):
    try:
        request.parts_of_step(computed, scheduled)
    except VTRError:
        return True
    return False


@given(reduced_requests(), st.data())
@FEW
def test_clip_takes_the_most_that_does_not_split_a_part(request, data):
    computed = data.draw(st.sampled_from(whole_parts(request, request.prompt_len + 20)))
    at_the_end = request.prompt_len - computed + data.draw(st.integers(-1, 1))
    scheduled = data.draw(st.just(max(at_the_end, 1)) | st.integers(1, 50))
    possible = [n for n in range(scheduled + 1) if not splits(request, computed, n)]
    assert request.clip(computed, scheduled) == max(possible)


@given(reduced_requests(), st.integers(0, 20))
@FEW
def test_stored_tokens_counts_what_a_layer_keeps(request, generated):
    for layer in range(LAYERS):
        for num_tokens in whole_parts(request, request.prompt_len + generated):
            done = [part for part in request.parts if part.end <= num_tokens]
            dropped = sum(part.plan.n_vision - part.plan.counts[layer] for part in done)
            assert request.stored_tokens(num_tokens, layer) == num_tokens - dropped


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


@given(reduced_requests())
@FEW
def test_where_a_layer_has_stored_so_much(request):
    """``filled_at`` is the first, and ``reached_with`` the last position with so many tokens stored."""
    whole = whole_parts(request, request.prompt_len + 5)
    for layer in range(LAYERS):
        stored = [request.stored_tokens(position, layer) for position in whole]
        for count in range(stored[-1] + 1):
            reached = [p for p, there in zip(whole, stored, strict=True) if there <= count]
            if count < stored[-1]:
                assert request.reached_with(count, layer) == reached[-1]
            if count:
                filled = [p for p, there in zip(whole, stored, strict=True) if there >= count]
                assert request.filled_at(count, layer) == filled[0]


def test_a_prompt_that_ends_with_a_vision_token_is_refused():
    for local in (False, True):
        with pytest.raises(UnsupportedRequest, match="ends with a vision token"):
            request_of([range(3, 7)], 7, KEEP, ["saliency"], local=local)
        assert request_of([range(3, 7)], 8, KEEP, ["saliency"], local=local).instruction_len == 1
