"""The models that commands take by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vtr_vllm.engine.common.config import band_starts
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.own_models import OWN_MODELS
from vtr_vllm.schedules import Schedule, ScheduleBook


@pytest.mark.parametrize("name", OWN_MODELS)
def test_one_that_is_not_here_names_the_command_that_makes_it(name: str, tmp_path: Path) -> None:
    model = replace(OWN_MODELS[name], checkpoint=tmp_path / "none")
    with pytest.raises(ConfigurationError, match=f"^{name}: .*; run `make {name}-model`"):
        model.flags()


@pytest.mark.parametrize(
    ("name", "band", "kinds"),
    [("demo", 2, {False: False, None: False, True: True}), ("photo", 5, {None: True, True: True})],
)
def test_the_schedules_that_come_with_one_are_served_together(
    name: str, band: int, kinds: dict[bool | None, bool]
) -> None:
    """At each budget, in the KV bands that an engine makes of that many layers; the photo model's are local."""
    schedules = [Schedule.load(path) for path in OWN_MODELS[name].schedules.glob("*.json")]
    geometry = schedules[0].geometry
    assert band_starts(geometry.layers, None) == tuple(range(0, geometry.layers, band))
    book = ScheduleBook(geometry, schedules, band_starts(geometry.layers, None))
    for budget in (0.5, 0.25, 0.125):
        for reuse, is_reused in kinds.items():
            found = book.for_budget(budget, reuse)
            assert found.source == "searched"
            assert book.reuses(found.schedule) is is_reused
            assert found.schedule.provenance["versions"]["model"] == name
