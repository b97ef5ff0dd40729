"""The calculated times."""

from __future__ import annotations

from benchmarks.gpu_check.estimate import stage_seconds, table, weights
from benchmarks.gpu_check.stages import STAGES
from vtr_vllm.schedules import ModelGeometry


def test_weights_of_7b() -> None:
    billions = weights(ModelGeometry(32, 4096, 11008, 32, 32, 128), 32_000) / 2e9
    assert 6.6 < billions < 6.9


def test_the_first_three_stages_take_six_minutes_at_most() -> None:
    found = stage_seconds()
    assert list(found) == [stage.name for stage in STAGES]
    assert sum(sum(found[name].values()) for name in ("environment", "right", "fast")) <= 360
    assert all(sum(found[stage.name].values()) <= stage.limit_s for stage in STAGES)
    assert table().count("\n") == len(STAGES) + 1
