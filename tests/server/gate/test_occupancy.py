"""Places of requests: whatever comes and goes in whatever order, the counts are those of who is there."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.server.operations.test_metrics import value
from vtr_server.gate.occupancy import Occupancy, Place
from vtr_server.policy.settings import LimitSettings
from vtr_vllm.errors import CallerBusy, Overloaded

LIMITS = LimitSettings(in_flight=3, uploads=3, uploads_per_caller=2)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("arrive", "begin", "leave")), st.sampled_from("ab"), st.integers(0, 5)
    ),
    max_size=40,
)


@given(STEPS, st.sampled_from((0, 2)), st.booleans())
def test_the_counts_are_those_of_who_is_inside(
    steps: list[tuple[str, str, int]], most: int, has_body: bool
) -> None:
    occupancy, inside = Occupancy(LIMITS), list[Place]()
    before = value("vtr_uploads"), value("vtr_in_flight_requests")
    for what, caller, which in steps:
        if what == "arrive":
            try:
                inside.append(occupancy.arrive(caller, most, has_body=has_body))
            except CallerBusy:
                own = [place for place in inside if place.caller == caller]
                arriving = sum(place.uploads for place in own)
                assert (most and len(own) >= most) or arriving >= LIMITS.uploads_per_caller
            except Overloaded:
                uploads = sum(place.uploads for place in inside)
                assert len(inside) - uploads >= LIMITS.in_flight or uploads >= LIMITS.uploads
        elif inside:
            place = inside[which % len(inside)]
            if what == "begin":
                try:
                    occupancy.begin(place)
                except Overloaded:
                    assert occupancy.in_flight == LIMITS.in_flight
                    assert place.uploads, "it still counts as what it was"
            else:
                inside.remove(place)
                occupancy.leave(place)
        uploads = Counter(place.caller for place in inside if place.uploads)
        assert occupancy.uploads == uploads.total() <= LIMITS.uploads
        assert occupancy.in_flight == len(inside) - uploads.total() <= LIMITS.in_flight
        assert max(uploads.values(), default=0) <= LIMITS.uploads_per_caller
        told = value("vtr_uploads") - before[0], value("vtr_in_flight_requests") - before[1]
        assert told == (occupancy.uploads, occupancy.in_flight)
    for place in inside:
        occupancy.leave(place)
    assert (occupancy.uploads, occupancy.in_flight) == (0, 0)


def test_callers_that_are_gone_are_forgotten() -> None:
    occupancy = Occupancy(LIMITS)
    for number in range(100):
        occupancy.leave(occupancy.arrive(str(number), 1, has_body=number % 2 == 0))
    assert not occupancy._inside_of
    assert not occupancy._uploads_of
