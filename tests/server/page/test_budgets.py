"""The stops of the slider, by the page's own code in a browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.page.conftest import Light, OpenPage, offer

RUN = "async (offer) => (await import('./page/budgets.js')).stopsOf(offer)"


@pytest.fixture
def stops_of(open_page: OpenPage, light: Light) -> Any:
    page = open_page(light())
    return lambda given: page.evaluate(RUN, given)


def test_every_offer_is_a_stop_in_order(stops_of: Any) -> None:
    given = offer()
    stops = stops_of(given)
    budgets = [stop["budget"] for stop in stops]
    assert budgets == sorted(budgets)
    offered = {round(s["budget"] or s["mean_keep"], 3) for s in given["data"]}
    assert {round(budget, 3) for budget in budgets} == offered | {0.25, 0.5, 1.0}
    assert {stop["tier"]: stop["budget"] for stop in stops if stop["tier"]} == given["tiers"]


def test_each_stop_asks_for_what_it_says(stops_of: Any) -> None:
    asks = {stop["name"] or stop["budget"]: stop["ask"] for stop in stops_of(offer())}
    assert asks["economy"] == {"tier": "economy"}
    assert asks[0.125] == {"budget": 0.125}
    assert asks["g-search"] == {"schedule": "g-search"}  # it states no budget of its own


def test_stops_stay_within_the_bounds_that_the_server_names(stops_of: Any) -> None:
    given = offer() | {"budget": {"minimum": 0.25, "maximum": 0.5}}
    budgets = [stop["budget"] for stop in stops_of(given)]
    assert (min(budgets), max(budgets)) == (0.25, 0.5)


def test_a_server_without_stored_schedules_has_its_tiers(stops_of: Any) -> None:
    stops = stops_of({"data": [], "tiers": {"full": 1.0, "half": 0.5}})
    assert [(stop["budget"], stop["name"]) for stop in stops] == [(0.5, "half"), (1, "full")]


def test_a_bound_is_a_stop_where_nothing_else_is(stops_of: Any) -> None:
    bounds = {"minimum": 0.15, "maximum": 0.2}
    stops = stops_of({"data": [], "tiers": {}, "budget": bounds})
    assert [stop["ask"] for stop in stops] == [{"budget": 0.15}, {"budget": 0.2}]
