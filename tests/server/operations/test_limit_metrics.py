"""What is in use of the limits goes up and down."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.server.operations.test_metrics import value
from vtr_server.operations.limit_metrics import (
    observe_decoded_pixels,
    observe_in_flight,
    observe_uploads,
)

GAUGES: dict[str, Callable[..., None]] = {
    "vtr_in_flight_requests": observe_in_flight,
    "vtr_uploads": observe_uploads,
    "vtr_decoded_pixels": observe_decoded_pixels,
}


@pytest.mark.parametrize("name", GAUGES)
def test_what_is_in_use_goes_up_and_down(name: str) -> None:
    before = value(name)
    for change in (1, 1, -1):
        GAUGES[name](change)
    assert value(name) == before + 1
