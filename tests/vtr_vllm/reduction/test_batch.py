"""The plan of a step, against a brute force over explicit sets of kept tokens."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.reduction.strategies import (
    LAYERS,
    band_lists,
    drawn_order,
    request_of,
    steps,
)
from vtr_vllm.errors import VTRError
from vtr_vllm.reduction.batch import StepRequest, plan_batch

FEW = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)


def segment_at(plan, layer):
    (segment,) = [s for s in plan.segments if s.first_layer <= layer < s.end_layer]
    return segment


def cutting(step):
    """Whether tokens are dropped in this very step."""
    if step.reduced is None:
        return False
    done, behind = step.reduced.parts_of_step(step.computed, step.scheduled)
    return behind > done


@given(steps, band_lists, seeds)
@FEW
def test_there_is_a_plan_exactly_when_something_differs_from_stock(step, bands, seed):
    kept = [drawn_order(request, seed) for request in step]
    stock = all(
        np.array_equal(one.rows(layer), one.rows(-1))
        and np.array_equal(one.storage(layer), one.rows(-1))
        for one in kept
        for layer in range(LAYERS)
    )
    assert (plan_batch(step, LAYERS, bands) is None) == stock


@given(steps, band_lists, seeds)
@FEW
def test_a_token_is_stored_at_its_index_among_the_tokens_kept(step, bands, seed):
    plan = plan_batch(step, LAYERS, bands)
    if plan is None:
        return
    kept = [drawn_order(request, seed) for request in step]
    assert plan.num_rows == sum(request.scheduled for request in step)
    for layer in range(LAYERS):
        segment = segment_at(plan, layer)
        rows = [one.rows(layer) for one in kept]
        assert segment.query_len.tolist() == [len(positions) for positions in rows]
        assert segment.seq_len.tolist() == [len(one.positions(layer)) for one in kept]
        assert segment.query_start.tolist() == [0, *np.cumsum([len(one) for one in rows])]
        assert segment.num_rows == sum(len(positions) for positions in rows)
        request, position = segment.storage()
        expected = np.concatenate([one.storage(layer) for one in kept])
        assert position.tolist() == expected.tolist()
        assert request.tolist() == [i for i, one in enumerate(rows) for _ in one]


@given(steps, band_lists)
@FEW
def test_rows_of_a_request_are_stored_one_behind_the_other(step, bands):
    plan = plan_batch(step, LAYERS, bands)
    for segment in plan.segments if plan is not None else ():
        request, position = segment.storage()
        assert (position >= 0).all()
        for i in range(len(step)):
            own = position[request == i]
            assert own.tolist() == list(range(segment.seq_len[i] - len(own), segment.seq_len[i]))


@given(steps, band_lists)
@FEW
def test_decode_and_prefix_rows_only_shift(step, bands):
    plan = plan_batch(step, LAYERS, bands)
    for segment in plan.segments if plan is not None else ():
        request, position = segment.storage()
        for i, one in enumerate(step):
            if cutting(one):
                continue
            parts = one.reduced.parts if one.reduced is not None else ()
            dropped = sum(
                part.plan.dropped(segment.first_layer) for part in parts if part.end <= one.computed
            )
            positions = np.arange(one.computed, one.computed + one.scheduled)
            assert position[request == i].tolist() == (positions - dropped).tolist()


@given(steps, band_lists)
@FEW
def test_segments_tile_the_layers_inside_bands_and_are_as_long_as_can_be(step, bands):
    plan = plan_batch(step, LAYERS, bands)
    if plan is None:
        return
    segments = plan.segments
    covered = [layer for s in segments for layer in range(s.first_layer, s.end_layer)]
    assert covered == list(range(LAYERS))
    for segment in segments:
        start = bands[segment.band]
        end = (*bands, LAYERS)[segment.band + 1]
        assert start <= segment.first_layer < segment.end_layer <= end
    for one, following in pairwise(segments):
        same = np.array_equal(one.seq_len, following.seq_len) and np.array_equal(
            one.query_len, following.query_len
        )
        assert one.band != following.band or not same


@given(steps, band_lists, seeds)
@FEW
def test_cuts_name_the_rows_that_they_choose_from(step, bands, seed):
    plan = plan_batch(step, LAYERS, bands)
    if plan is None:
        return
    kept = [drawn_order(request, seed) for request in step]
    assert {layer: [(m.index, m.part) for m in of] for layer, of in plan.cuts.items()} == {
        layer: losing for layer in range(LAYERS) if (losing := losing_parts(kept, layer))
    }
    for layer, members in plan.cuts.items():
        rows = [one.rows(layer - 1) for one in kept]
        for member in members:
            one, part = kept[member.index], member.part
            assert (member.request, member.layer) == (one.step.reduced, layer)
            assert member.rule == part.plan.rules[part.plan.cuts.index(layer)]
            covered = covered_by(one.step, part)
            own = np.isin(rows[member.index], covered)
            before = sum(len(others) for others in rows[: member.index])
            assert (member.first_row, member.num_rows) == (before + own.argmax(), own.sum())
            assert own[own.argmax() :][: own.sum()].all(), "one behind the other"
            assert member.position == covered[0]
            assert member.step_row == covered[0] - one.step.computed + sum(
                request.scheduled for request in step[: member.index]
            )
            assert member.stored == (one.positions(layer - 1) < covered[0]).sum()
            assert member.kept_rows == np.isin(one.rows(layer), covered).sum()
            text = own.sum() - np.isin(rows[member.index], part.vision).sum()
            assert member.kept_rows - text == member.kept_vision
            assert member.num_rows - text == member.vision_before
            generated = rows[member.index][own] >= one.step.reduced.prompt_len
            assert (member.generated, member.prompt_rows) == (generated.sum(), (~generated).sum())
    assert plan.rank_layers == {
        layer - 1 for layer, ms in plan.cuts.items() for m in ms if m.rule.needs_attention
    }


def losing_parts(kept, layer):
    """(request, part) of all that lose tokens before ``layer``."""
    return [
        (i, part)
        for i, one in enumerate(kept)
        for part in (one.step.reduced.parts if one.step.reduced is not None else ())
        if one.step.computed <= part.start
        if part.end <= one.step.computed + one.step.scheduled
        if np.isin(one.rows(layer - 1), part.vision).sum()
        > np.isin(one.rows(layer), part.vision).sum()
    ]


def covered_by(step, part):
    """The positions that a cut of ``part`` sees: an image's, or those of a whole step."""
    if step.reduced.is_local:
        return np.arange(part.vision[0], part.vision[-1] + 1)
    return np.arange(step.computed, step.computed + step.scheduled)


@given(steps, band_lists)
@FEW
def test_vision_rows_and_numbers_say_where_vision_tokens_stand(step, bands):
    plan = plan_batch(step, LAYERS, bands)
    if plan is None:
        return
    if not plan.cuts:
        assert plan.vision is None
        return
    expected = []
    for one in step:
        number = {}
        for part in one.reduced.parts if one.reduced is not None else ():
            if one.computed <= part.start and part.end <= one.computed + one.scheduled:
                number |= dict(zip(part.vision, range(100), strict=False))
        expected += [number.get(one.computed + row, -1) for row in range(one.scheduled)]
    assert plan.vision.tolist() == expected
    for member in (m for members in plan.cuts.values() for m in members):
        numbers = list(range(member.part.plan.n_vision))
        assert plan.vision[member.vision_rows].tolist() == numbers


@given(steps, band_lists, st.data())
@FEW
def test_a_plan_with_counts_is_that_of_requests_whose_counts_were_known(step, bands, data):
    plan = plan_batch(step, LAYERS, bands)
    guided = [
        member
        for members in (plan.cuts.values() if plan is not None else ())
        for member in members
        if not member.request.is_local
    ]
    if not guided:
        return
    layer = data.draw(st.sampled_from(sorted({member.layer for member in guided})))
    counts = {
        member.index: data.draw(st.integers(0, member.kept_vision))
        for member in guided
        if member.layer == layer and data.draw(st.booleans())
    }
    found = plan.with_counts(layer, counts)
    known = list(step)
    for index, count in counts.items():
        of = step[index].reduced
        known[index] = replace(step[index], reduced=of.with_plan(of.plan.with_count(layer, count)))
    expected = plan_batch(known, LAYERS, bands)
    assert [str(segment) for segment in found.segments] == [
        str(segment) for segment in expected.segments
    ]
    assert found.cuts.keys() == expected.cuts.keys()
    before = [segment for segment in plan.segments if segment.end_layer <= layer]
    for one, other in zip(before, found.segments, strict=False):
        assert str(one) == str(other), "what has run is as it was"
    assert [m.kept_vision for m in found.cuts[layer]] == [
        counts.get(m.index, m.kept_vision) for m in plan.cuts[layer]
    ]


def test_a_mixed_step_by_hand():
    """An unreduced request, a warm prefill that lost 3 of 4 at layer 2, and a decode."""
    request = request_of([range(3, 7)], 10, [1, 1, 0.25, 0.25], ["last"])
    step = [StepRequest(5, 2, None), StepRequest(2, 8, request), StepRequest(12, 1, request)]
    plan = plan_batch(step, 4, (0, 3))
    assert [(s.first_layer, s.end_layer, s.band) for s in plan.segments] == [
        (0, 2, 0),
        (2, 3, 0),
        (3, 4, 1),
    ]
    assert [s.query_len.tolist() for s in plan.segments] == [[2, 8, 1], [2, 5, 1], [2, 5, 1]]
    assert [s.seq_len.tolist() for s in plan.segments] == [[7, 10, 13], [7, 7, 10], [7, 7, 10]]
    assert plan.segments[1].storage()[1].tolist() == [5, 6, 2, 3, 4, 5, 6, 9]
    (cut,) = plan.cuts[2]
    assert (cut.first_row, cut.num_rows, cut.kept_rows, cut.generated) == (2, 8, 5, 0)
    assert cut.vision_rows.tolist() == [3, 4, 5, 6]
    assert plan.rank_layers == {1}


def test_a_cut_before_layer_0_and_a_band_per_layer():
    request = request_of([range(2)], 4, [0.5, 0.5, 0.5], ["saliency"])
    plan = plan_batch([StepRequest(0, 4, request)], 3, (0, 1, 2))
    assert [s.query_len.tolist() for s in plan.segments] == [[3], [3], [3]]
    assert plan.cuts[0][0].num_rows == 4
    assert plan.rank_layers == set()


def test_a_step_that_splits_a_part_makes_no_plan():
    request = request_of([range(3, 7)], 10, [1, 1, 0.25, 0.25], ["last"])
    with pytest.raises(VTRError, match="splits the part"):
        plan_batch([StepRequest(0, 5, request)], 4, (0,))


def test_images_of_a_local_request_by_hand():
    """Two images of 4 and 2 tokens, of which layer 1 keeps half each, in two chunks."""
    request = request_of([range(1, 5), range(6, 8)], 9, [1, 0.5], ["saliency"], local=True)
    assert [part.plan.counts for part in request.parts] == [(4, 2), (2, 1)]
    assert request.plan.counts == (6, 3)
    plan = plan_batch([StepRequest(0, 6, request)], 2, (0, 1))
    assert [(s.query_len.tolist(), s.seq_len.tolist()) for s in plan.segments] == [
        ([6], [6]),
        ([4], [4]),
    ]
    (cut,) = plan.cuts[1]
    assert (cut.first_row, cut.num_rows, cut.kept_rows, cut.stored) == (1, 4, 2, 1)
    plan = plan_batch([StepRequest(6, 3, request)], 2, (0, 1))
    assert [(s.query_len.tolist(), s.seq_len.tolist()) for s in plan.segments] == [
        ([3], [9]),
        ([2], [6]),
    ]
    (cut,) = plan.cuts[1]
    assert (cut.first_row, cut.num_rows, cut.kept_rows, cut.stored) == (0, 2, 1, 6)
    assert plan_batch([StepRequest(9, 1, request)], 2, (0, 1)).segments[1].seq_len.tolist() == [7]
