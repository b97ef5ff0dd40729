import pytest

from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.training.registers.checkpoint import schedules

GEOMETRY = ModelGeometry(32, 4096, 11008, 32, 32, 128)


def test_the_papers_setting():
    """576 tokens and 8 registers, dropped before layer 3 of 32: .1076 of the tokens on the mean."""
    (found,) = schedules(GEOMETRY, 576, 8, 3, elastic=False)
    assert found.name == "registers-8"
    assert found.is_local
    assert found.budget == found.mean_keep
    counts = found.counts(584)
    assert counts == (584,) * 3 + (8,) * 29
    assert sum(counts) / (32 * 576) == pytest.approx(0.1076, abs=1e-4)


def test_elastic_ones_halve():
    found = schedules(GEOMETRY, 576, 12, 3, elastic=True)
    assert [schedule.counts(588)[-1] for schedule in found] == [12, 6, 3, 1]
