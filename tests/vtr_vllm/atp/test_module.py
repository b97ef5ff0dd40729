"""The ATP module of one cut, by hand and by its invariants."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtr_vllm.atp.module import (
    MARGIN,
    OFF_GRID,
    AtpCut,
    AtpModules,
    Kept,
    Masking,
    Shape,
    all_kept,
    cross_scores,
    grid_scores,
    normalised,
    pooled,
    self_scores,
)

ATTENTION = torch.tensor([[[0.9, 0.0, 0.0], [0.2, 0.5, 0.0], [0.4, 0.1, 0.3]]])
"""Of three vision tokens among themselves; the rest of each row goes elsewhere."""


def test_a_token_is_scored_by_the_mean_of_those_that_see_it() -> None:
    found = self_scores(ATTENTION, torch.ones(1, 3))
    mean = (0.3 + 0.1) / 2  # nobody sees the last one
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.1, mean]]))


def test_dropped_tokens_look_no_more() -> None:
    found = self_scores(ATTENTION, torch.tensor([[1.0, 0.0, 1.0]]))
    torch.testing.assert_close(found[0, :2], torch.tensor([0.4, 0.1]))
    half = self_scores(ATTENTION, torch.tensor([[1.0, 0.5, 1.0]]))
    torch.testing.assert_close(half[0, 0], torch.tensor((0.5 * 0.2 + 0.4) / 1.5))


def test_the_question_alone_asks() -> None:
    attention = torch.tensor([[[9.0, 9.0], [0.2, 0.4], [0.4, 0.0], [9.0, 9.0]]])
    asking = torch.tensor([[False, True, True, False]])
    torch.testing.assert_close(cross_scores(attention, asking), torch.tensor([[0.3, 0.2]]))


def test_scores_are_brought_to_the_unit_interval_among_those_alive() -> None:
    scores = torch.tensor([[2.0, 4.0, 3.0, 90.0], [1.0, 1.0, 1.0, 1.0]])
    alive = torch.tensor([[True, True, True, False], [True] * 4])
    expected = torch.tensor([[0.0, 1.0, 0.5, 0.0], [0.0] * 4])
    torch.testing.assert_close(normalised(scores, alive), expected)


@pytest.mark.parametrize(("side", "counts"), [(12, (9, 16, 36)), (24, (36, 64, 144))])
def test_grids_have_a_sixteenth_a_ninth_and_a_quarter(
    side: int, counts: tuple[int, int, int]
) -> None:
    scores = grid_scores(side, side)
    coarse, middle, fine = 1 - 3 / 16, 1 - 3 / 9, 1 - 3 / 4
    assert int((scores == coarse).sum()) == counts[0]
    cells = {(i // side, i % side) for i in (scores > OFF_GRID).nonzero()[:, 0].tolist()}
    grids = [{(r, c) for r in range(1, side, s) for c in range(1, side, s)} for s in (4, 3, 2)]
    assert [len(grid) for grid in grids] == list(counts)
    assert cells == grids[0] | grids[1] | grids[2]
    of = {(i // side, i % side): v for i, v in enumerate(scores.tolist())}
    assert of[1, 1] == pytest.approx(coarse)  # on all of them: the coarsest counts
    assert of[1, 4] == pytest.approx(middle)
    assert of[1, 3] == pytest.approx(fine)
    assert of[0, 0] == OFF_GRID


def test_one_row_has_grids_too() -> None:
    assert int((grid_scores(1, 8) > OFF_GRID).sum()) == 5  # columns 0, 4; 3, 6; 2


def test_pooling_by_hand() -> None:
    scores = torch.tensor([[1.0, 3.0, 5.0, 7.0]])
    torch.testing.assert_close(pooled(scores, torch.ones(1, 4), 2), torch.tensor([[2.0, 6.0]]))
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(pooled(scores, weight, 2), torch.tensor([[1.0, 0.0]]))
    wide = pooled(scores[:, :2], torch.ones(1, 2), 4)
    torch.testing.assert_close(wide, torch.tensor([[1.0, 0.0, 3.0, 0.0]]))


class Fixed(AtpCut):
    """A cut with thresholds of our choice."""

    def __init__(self, redundant: float, spatial: float) -> None:
        super().__init__(Shape())
        self.chosen = torch.tensor([redundant, spatial])

    def thresholds(
        self, own: Tensor, cross: Tensor, weight: Tensor, state: Tensor | None
    ) -> Tensor:
        return self.chosen.expand(len(own), 2)


RECEIVED = torch.tensor([[0.0, 1.0, 0.6, 0.2]])
ASKED = torch.tensor([[0.0, 1.0, 0.2, 0.6]])  # S: 0, 1, .4, .4
GRID = torch.tensor([0.25, OFF_GRID, OFF_GRID, 0.8125])


def decide(redundant: float, spatial: float, masking: Masking, before: Kept | None = None) -> Kept:
    cut = Fixed(redundant, spatial)
    return cut(RECEIVED, ASKED, None, GRID, before or all_kept(1, 4), masking)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("redundant", "spatial", "kept"),
    [
        (-0.1, 2.0, [0, 1, 2, 3]),
        (0.3, 2.0, [1, 2, 3]),
        (0.5, 2.0, [1]),
        (0.5, 0.5, [1, 3]),  # the coarsest grid comes in
        (0.5, 0.1, [0, 1, 3]),  # and a denser one
        (1.2, 2.0, [1]),  # nothing is left: the best one stays
    ],
)
def test_hard_decisions(redundant: float, spatial: float, kept: list[int]) -> None:
    found = decide(redundant, spatial, Masking("hard"))
    torch.testing.assert_close(found.scores, torch.tensor([[0.0, 1.0, 0.4, 0.4]]))
    assert found.alive[0].nonzero()[:, 0].tolist() == kept
    assert torch.equal(found.weight, found.alive.float())
    assert torch.equal(found.log_weight == 0, found.alive)


def test_the_earlier_of_equals_fills_up_to_n_min() -> None:
    found = decide(1.2, 2.0, Masking("hard", n_min=2))
    assert found.alive[0].nonzero()[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("redundant", "n_min", "order"),
    [(0.3, 1, [1, 3, 2, 0]), (1.2, 2, [1, 2, 3, 0]), (1.2, 1, [1, 2, 3, 0])],
)
def test_margins_are_an_order_too(redundant: float, n_min: int, order: list[int]) -> None:
    """By the threshold that a token passes best; by S where too few pass."""
    cut = Fixed(redundant, 0.5)
    alive = torch.tensor([[True] * 4])
    grid = GRID if redundant < 1 else torch.full((4,), OFF_GRID)
    margins = cut.margins(RECEIVED, ASKED, None, grid, alive, n_min)[0]
    assert margins.sort(descending=True, stable=True).indices.tolist() == order
    assert int((margins > 0).sum()) == (3 if redundant < 1 else n_min)


def test_a_dropped_token_never_comes_back() -> None:
    before = decide(0.5, 2.0, Masking("hard"))
    after = decide(-0.4, -0.4, Masking("hard", n_min=3), before)
    assert torch.equal(after.alive, before.alive)


def test_the_soft_mask_by_hand() -> None:
    found = decide(0.5, 0.5, Masking("soft", temperature=10))
    sigmoid = torch.sigmoid(torch.tensor([[-2.5, 5.0, -1.0, 3.125]]))  # the better of both
    torch.testing.assert_close(found.weight, sigmoid)
    twice = decide(0.5, 0.5, Masking("soft", temperature=10), found)
    assert bool((twice.weight <= found.weight).all())


def test_straight_through_decides_and_has_the_soft_gradient() -> None:
    cut = Fixed(0.5, 2.0)
    cut.chosen.requires_grad_()
    args = (RECEIVED, ASKED, None, GRID, all_kept(1, 4))
    kept = cut(*args, Masking("straight-through", temperature=10))
    torch.testing.assert_close(kept.weight, kept.alive.float())
    (through,) = torch.autograd.grad(kept.weight.sum(), cut.chosen)
    soft = cut(*args, Masking("soft", temperature=10))
    (expected,) = torch.autograd.grad(soft.weight.sum(), cut.chosen)
    torch.testing.assert_close(through, expected)
    assert float(through[0]) < 0


def test_an_untrained_cut_keeps_everything() -> None:
    torch.manual_seed(0)
    cut = AtpCut(Shape(state=6))
    received, asked = torch.rand(3, 16), torch.rand(3, 16)
    args = (received, asked, torch.randn(3, 6), grid_scores(4, 4), all_kept(3, 16))
    assert bool(cut(*args, Masking("hard")).alive.all())
    soft = cut(*args, Masking("soft", temperature=10))
    assert float(soft.weight.detach().min()) > 0.98


def test_heads_that_read_the_question_want_its_state() -> None:
    cut = AtpCut(Shape(state=6))
    with pytest.raises(ValueError, match="state of 6"):
        cut.thresholds(torch.rand(1, 4), torch.rand(1, 4), torch.ones(1, 4), None)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n_min=st.integers(1, 5), high=st.floats(-4.0, 8.0))
def test_invariants_over_three_cuts(seed: int, n_min: int, high: float) -> None:
    """Masks in [0, 1], counts that never rise, n_min tokens at least; soft goes to hard."""
    torch.manual_seed(seed)
    modules = AtpModules((1, 2, 3), Shape(bins=4))
    for index in range(3):
        torch.nn.init.normal_(modules.cut(index).heads.bias, mean=high, std=2.0)
    drawn = [(torch.rand(2, 9), torch.rand(2, 9)) for _ in range(3)]
    grid = grid_scores(3, 3)
    kept = {mode: all_kept(2, 9) for mode in ("soft", "hard", "straight-through")}
    for index, (received, asked) in enumerate(drawn):
        before, cut = dict(kept), modules.cut(index)
        for mode in ("soft", "hard", "straight-through"):
            masking = Masking(mode, 20.0, n_min)
            kept[mode] = cut(received, asked, None, grid, before[mode], masking)
            weight = kept[mode].weight.detach()
            assert 0 <= float(weight.min()) <= float(weight.max()) <= 1
            assert bool((kept[mode].share <= before[mode].share + 1e-6).all())
            assert int(kept[mode].alive.sum(-1).min()) >= n_min
            assert not bool((kept[mode].alive & ~before[mode].alive).any())
            low, top = kept[mode].thresholds.aminmax()
            assert -MARGIN <= float(low) <= float(top) <= 1 + MARGIN
        assert torch.equal(kept["hard"].alive, kept["straight-through"].alive)
        margins = cut.margins(received, asked, None, grid, before["hard"].alive, n_min)
        assert torch.equal((margins > 0) & before["hard"].alive, kept["hard"].alive)
        # where n_min did not decide and nothing lies at a threshold, the limit of soft is hard
        sharp = cut(received, asked, None, grid, before["hard"], Masking("soft", 1e6))
        clear = _clear(sharp, grid)
        free = (sharp.weight.sum(-1, keepdim=True) >= n_min).expand_as(clear)
        hard = kept["hard"].weight
        torch.testing.assert_close(sharp.weight[clear & free], hard[clear & free])


def _clear(found: Kept, grid: Tensor) -> Tensor:
    """Which tokens lie off both thresholds."""
    away = [
        (scores - theta[:, None]).abs() > 1e-4
        for scores, theta in (
            (found.scores, found.thresholds[:, 0]),
            (grid, found.thresholds[:, 1]),
        )
    ]
    return away[0] & away[1]
