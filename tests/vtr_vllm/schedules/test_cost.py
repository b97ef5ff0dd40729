"""The cost model against hand counts and against the published tables.

"The paper" is arXiv 2412.00556; table 1 gives LLaVA-1.5-7B 9.18 TFLOPs without reduction, 5.49
for FastV (mean keep .531) and 5.19 for VTW (.5). The prompt length, and whether the vision tower
counts, are not published, so only ratios are checked. PDrop's row (5.47 at .469) lies off the
line that the others share and is left out.
"""

from dataclasses import replace

import pytest

from tests.vtr_vllm.schedules.strategies import LLAVA_7B
from vtr_vllm.errors import GeometryMismatch
from vtr_vllm.schedules import (
    ModelGeometry,
    RankRule,
    explicit,
    fastv,
    flops_fraction,
    full,
    kv_bytes,
    kv_tokens,
    prefill_flops,
    pyramid_drop,
    vtw,
)

N_VISION = 576
TINY = ModelGeometry(layers=2, hidden_size=8, intermediate_size=20, heads=4, kv_heads=2, head_dim=3)


def test_one_layer_by_hand():
    # q, o: 2 * 8 * 12; k, v: 2 * 8 * 6; MLP: 3 * 8 * 20; attention: 2 * n^2 * 12
    per_token = 192 + 96 + 480
    assert prefill_flops(TINY, (5, 1), n_text=2) == 10 * per_token + 24 * (49 + 9)


def test_equal_widths_give_the_literature_formula():
    n, d, m = 640, 4096, 11008
    one = prefill_flops(LLAVA_7B, (N_VISION,) * 32, n_text=64) / 32
    assert one == 4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m


def test_stored_tokens_and_bytes():
    assert kv_tokens((5, 1), 2) == (7, 3)
    assert kv_bytes(TINY, (5, 1), 2, dtype_bytes=2) == 10 * 2 * 2 * 3 * 2
    # 32 layers, 4096 wide, 16 bit: half a MiB per token
    assert kv_bytes(LLAVA_7B, (1,) * 32, 0, dtype_bytes=2) == 512 * 1024


def test_counts_of_another_model_are_refused():
    with pytest.raises(GeometryMismatch, match="2 layers"):
        prefill_flops(LLAVA_7B, (1, 1), 0)
    with pytest.raises(GeometryMismatch, match="3 layers"):
        kv_bytes(TINY, (1, 1, 1), 0, 2)
    with pytest.raises(ValueError, match="costs nothing"):
        flops_fraction(TINY, (0, 0), 0, 0)


def test_fraction_is_1_without_reduction():
    assert flops_fraction(LLAVA_7B, full(LLAVA_7B).counts(N_VISION), N_VISION, 64) == 1.0


def published(layers, rates):
    """A schedule of rates at layer indices, as published: {first layer: rate}."""
    keep, rate = [], 1.0
    for layer in range(layers):
        rate = rates.get(layer, rate)
        keep.append(rate)
    geometry = ModelGeometry(layers, 2048, 8192, 16, 8, 128)
    return explicit(geometry, keep, [RankRule.parse("last")] * len(rates))


@pytest.mark.parametrize(
    ("layers", "rates", "memory"),
    [
        (32, {2: 0.5}, 0.531),  # FastV, K=2, R=50%
        (24, {2: 0.5}, 0.542),  # the same, 24 layers
        (32, {8: 0.5, 16: 0.25, 24: 0.125}, 0.469),  # PDrop
        (24, {8: 0.5, 16: 0.25}, 0.583),  # PDrop with its third cut past the end
        (32, {16: 0.0}, 0.5),  # VTW
        (24, {12: 0.0}, 0.5),
    ],
)
def test_mean_keep_is_the_papers_memory_cost(layers, rates, memory):
    assert published(layers, rates).mean_keep == pytest.approx(memory, abs=5e-4)


def test_the_forms_are_the_published_settings_at_their_mean_keep():
    geometry = LLAVA_7B
    assert fastv(geometry, 17 / 32).keep[2] == pytest.approx(0.5, abs=1e-12)
    assert pyramid_drop(geometry, 0.46875).keep[24] == pytest.approx(0.125, abs=1e-12)
    assert vtw(geometry, 0.5).cuts == (16,)


# The ratio T(M) / T(1) of the line T = 1.329 + 7.851 M that the paper's own rows share has
# 1.329 / 9.18 = 14.5% that does not shrink with the vision tokens: as much as about 97 text
# tokens beside 576. With 97 the counter must give the table's ratios. Residual (up to .006):
# the true prompt, the tower and the paper's formula are unknown, and the attention's square
# makes M a little less than proportional.
N_TEXT = 97


@pytest.mark.parametrize(
    ("schedule", "tflops"), [(fastv(LLAVA_7B, 17 / 32), 5.49), (vtw(LLAVA_7B, 0.5), 5.19)]
)
@pytest.mark.parametrize("matrices", [2, 3])
def test_published_flops_ratios(schedule, tflops, matrices):
    """Also with an MLP of two matrices, as some papers count: three of two thirds of the width."""
    geometry = replace(LLAVA_7B, intermediate_size=LLAVA_7B.intermediate_size * matrices // 3)
    fraction = flops_fraction(geometry, schedule.counts(N_VISION), N_VISION, N_TEXT)
    assert fraction == pytest.approx(tflops / 9.18, abs=0.008)


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.125, 0.0625])
def test_fastv_points_lie_on_the_published_line(rate):
    mean_keep = (2 + 30 * rate) / 32
    counts = fastv(LLAVA_7B, mean_keep).counts(N_VISION)
    line = (1.329 + 7.851 * mean_keep) / 9.18
    assert flops_fraction(LLAVA_7B, counts, N_VISION, N_TEXT) == pytest.approx(line, abs=0.01)
