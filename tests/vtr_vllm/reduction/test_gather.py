"""Which rows stay, against a brute force in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.reduction.one_request import keep_best, keep_best_of_each
from tests.vtr_vllm.reduction.scores import scores_by
from tests.vtr_vllm.reduction.strategies import LAYERS, band_lists, request_of, steps
from vtr_vllm.reduction.batch import StepRequest, plan_batch
from vtr_vllm.reduction.gather import Rows, restore

FEW = settings(deadline=None, max_examples=60)
CPU = torch.device("cpu")

# Few values, so that ties are the rule.
scores = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, math.nan, math.inf, -math.inf])


def ranked_by_hand(values, number):
    """Rows that are not text, by score and place; NaN counts as 0."""
    return sorted(
        (row for row, own in enumerate(number) if own >= 0),
        key=lambda row: (-(0.0 if math.isnan(values[row]) else values[row]), row),
    )


def best_by_hand(values, number, kept_rows):
    """All text, then vision tokens in their order."""
    text = [row for row, own in enumerate(number) if own < 0]
    return sorted(text + ranked_by_hand(values, number)[: kept_rows - len(text)])


def best_of_each_by_hand(values, image, kept_rows, floors):
    """All text, what each image keeps for sure, then the best of all others."""
    ranked = ranked_by_hand(values, image)
    sure = [row for row, own in enumerate(image) if own < 0]
    for number, floor in enumerate(floors):
        sure += [row for row in ranked if image[row] == number][:floor]
    others = [row for row in ranked if row not in sure]
    return sorted(sure + others[: kept_rows - len(sure)])


@st.composite
def scored_rows(draw):
    values = draw(st.lists(scores, min_size=1, max_size=30))
    is_vision = draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    vision = np.where(is_vision, np.cumsum(is_vision) - 1, -1).tolist()
    kept = len(values) - draw(st.integers(0, sum(is_vision)))
    return values, vision, kept


@given(scored_rows())
@FEW
def test_the_best_are_kept(case):
    values, vision, kept_rows = case
    chosen = keep_best(torch.tensor(values), torch.tensor(vision), kept_rows)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == best_by_hand(values, vision, kept_rows)


@given(st.lists(st.tuples(scores, st.integers(-1, 3)), min_size=1, max_size=40), st.data())
@FEW
def test_the_best_of_each_image_are_kept(rows, data):
    values, image = zip(*rows, strict=True)
    # Images may be torn and out of order, as rows of a batch never are, and one may be gone.
    floors = [data.draw(st.integers(0, image.count(i))) for i in range(4)]
    least = image.count(-1) + sum(floors)
    kept_rows = data.draw(st.integers(least, len(rows)))
    chosen = keep_best_of_each(torch.tensor(values), torch.tensor(image), kept_rows, floors)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == best_of_each_by_hand(values, image, kept_rows, floors)
    if not any(floors):
        assert chosen.tolist() == keep(values, image, kept_rows)


def test_a_floor_brings_back_the_image_that_scored_worst():
    values, image = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.3, 0.1]), torch.tensor([0, 0, 0, -1, 1, 1])
    assert keep_best_of_each(values, image, 4, (0, 0)).tolist() == [0, 1, 2, 3]
    assert keep_best_of_each(values, image, 4, (1, 1)).tolist() == [0, 1, 3, 4]
    assert keep_best_of_each(values, image, 4, (1, 2)).tolist() == [0, 3, 4, 5]


def keep(values, vision, kept_rows):
    return keep_best(torch.tensor(values), torch.tensor(vision), kept_rows).tolist()


def test_ties_go_to_the_earlier():
    assert keep([0.5, 0.5, 0.5, 0.5], [0, 1, 2, 3], 2) == [0, 1]
    assert keep([0.1, 0.5, 0.5, 0.5], [0, 1, 2, 3], 2) == [1, 2]
    many = torch.zeros(5000)
    assert keep_best(many, torch.arange(5000), 1234).tolist() == list(range(1234))


def test_scores_of_text_are_never_read():
    assert keep([-9.0, 0.5, math.nan, 0.7], [-1, 0, -1, 1], 3) == [0, 2, 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_scores_never_push_text_out(bad):
    assert keep([bad, 0.0, bad, 0.0, bad], [0, -1, 1, -1, 2], 2) == [1, 3]
    assert keep([bad, 0.0, bad, 0.0, bad], [0, -1, 1, -1, 2], 3) == [0, 1, 3]


def test_nothing_to_keep():
    assert keep([0.5, 0.7], [0, 1], 0) == []
    assert keep([0.5, 0.7, 0.1], [0, 1, -1], 1) == [2]


@given(steps, band_lists, st.integers(0, 2**32 - 1))
@FEW
def test_several_cuts_of_several_requests(step, bands, seed):
    plan = plan_batch(step, LAYERS, bands)
    if plan is None or not plan.cuts:
        return
    draw = np.random.default_rng(seed)
    # Row of the step -> its request; the brute force follows rows by where they stood.
    owner = [i for i, one in enumerate(step) for _ in range(one.scheduled)]
    left = list(range(plan.num_rows))
    hidden = torch.arange(plan.num_rows)
    rows = Rows(plan, CPU)
    for layer in sorted(plan.cuts):
        table = draw.integers(0, 5, (len(step), 30)).astype(np.float32)

        def score(member, vision, table=table):
            assert len(vision) == member.num_rows
            own = table[member.index][member.part.first :]
            return torch.from_numpy(own)[vision.clamp(min=0)]

        chosen = rows.cut(plan.cuts[layer], scores_by(score, rows, plan.cuts[layer]))
        hidden = hidden[chosen]
        for member in plan.cuts[layer]:
            own = covered(member, left, owner)
            numbers = [int(plan.vision[row]) for row in own]
            values = [float(table[member.index][member.part.first + n]) for n in numbers]
            images = image_of(member, numbers)
            floors = member.floors or ()
            best = best_of_each_by_hand(values, images, member.kept_rows, floors)
            stay = {own[row] for row in best}
            left = [row for row in left if row not in own or row in stay]
        assert hidden.tolist() == left
        assert rows.original.tolist() == left
        assert rows.vision.tolist() == plan.vision[left].tolist()
        lengths = next(s for s in plan.segments if s.first_layer <= layer < s.end_layer).query_len
        for member in plan.cuts[layer]:
            own = [plan.vision[row] for row in covered(member, left, owner)]
            held = image_of(member, own)
            assert all(held.count(i) >= floor for i, floor in enumerate(member.floors or ()))
        assert [sum(owner[row] == i for row in left) for i in range(len(step))] == lengths.tolist()


def test_an_image_that_now_ends_in_text_beside_a_longer_one():
    torn, longer = (
        request_of(spans, 13, [1, 0.5, 0.25], ["random"] * 2, local=True)
        for spans in ([[0, 1, 4, 5]], [range(12)])
    )
    plan = plan_batch([StepRequest(0, 6, torn), StepRequest(0, 12, longer)], 3, (0,))
    rows = Rows(plan, CPU)

    def first_are_best(member, vision):
        return -vision.float()

    def cut(layer):
        members = plan.cuts[layer]
        return rows.cut(members, scores_by(first_are_best, rows, members)).tolist()

    # Tokens 0 and 1 stay of the torn image: its last row is then the text behind them.
    assert cut(1) == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert cut(2) == [0, 2, 3, 4, 5, 6]


def covered(member, left, owner):
    """The rows of the step that a cut chooses from: an image's, or all of a request."""
    own = [row for row in left if owner[row] == member.index]
    if not member.request.is_local:
        return own
    first, last = member.vision_rows[0], member.vision_rows[-1]
    return [row for row in own if first <= row <= last]


def image_of(member, numbers):
    images = np.repeat(range(len(member.part.units)), member.part.image_sizes)
    return [-1 if number < 0 else int(images[number]) for number in numbers]


def test_restore_puts_rows_back_and_zeros_elsewhere():
    request = request_of([range(1, 4)], 5, [1, 0.34, 0.34], ["random"])
    plan = plan_batch([StepRequest(0, 5, request), StepRequest(8, 1, None)], 3, (0,))
    rows = Rows(plan, CPU)
    best = torch.tensor([0.0, 0.1, 0.9, 0.2, 0.0])
    chosen = rows.cut(plan.cuts[1], best[None])
    assert chosen.tolist() == [0, 2, 4, 5]
    hidden = torch.arange(1.0, 7.0, dtype=torch.bfloat16)[chosen][:, None].repeat(1, 2)
    full = restore(rows, hidden, 8)
    assert full.dtype == torch.bfloat16
    assert full[:, 0].tolist() == full[:, 1].tolist() == [1, 0, 3, 0, 5, 6, 0, 0]
