import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import budgets
from vtr_vllm.errors import GeometryMismatch, InvalidBudget, ScheduleError, UnknownSchedule
from vtr_vllm.schedules import (
    FORMS,
    ModelGeometry,
    RankRule,
    Schedule,
    ScheduleBook,
    explicit,
    fastv,
    full,
    interpolate,
    p_sigmoid,
    uniform,
)

GEOMETRY = ModelGeometry(12, 128, 320, 2, 2, 64)
OTHER = ModelGeometry(24, 128, 320, 2, 2, 64)
SEARCHED = replace(p_sigmoid(GEOMETRY, 0.25, k=1.0), name="demo-0.25", method="p-sigmoid-search")
LOSSLESS = replace(fastv(GEOMETRY, 0.5), name="lossless", method="g-search", budget=None)


@pytest.fixture
def book():
    return ScheduleBook(GEOMETRY, [SEARCHED, LOSSLESS])


def test_stored_and_built_in_names(book):
    assert book.by_name("demo-0.25") is SEARCHED
    assert book.by_name("fastv-0.5") == fastv(GEOMETRY, 0.5)
    assert book.names() == ("demo-0.25", "full", "lossless")


@pytest.mark.parametrize("name", ["", "demo", "fastv-0.50001", "x" * 10**5])
def test_an_unknown_name_lists_what_exists(book, name):
    with pytest.raises(
        UnknownSchedule, match=r"demo-0.25, full, lossless, and .*fastv-<budget>"
    ) as e:
        book.by_name(name)
    assert len(str(e.value)) < 500


def test_a_form_beyond_its_reach_says_so(book):
    with pytest.raises(InvalidBudget, match="fastv cannot meet"):
        book.by_name("fastv-0.01")


@pytest.mark.parametrize(
    ("budget", "name", "source"),
    [
        (1, "full", "full"),
        (1.0, "full", "full"),
        (0.25, "demo-0.25", "searched"),
        (0.25 + 1e-12, "demo-0.25", "searched"),
        (0.25 - 1e-12, "demo-0.25", "searched"),
        (0.5, "interpolated-0.5", "interpolated"),  # lossless promises no budget
        (0.2501, "interpolated-0.2501", "interpolated"),
        (1 - 1e-6, "interpolated-0.999999", "interpolated"),
        (0.2499, "divprune-0.2499", "local-default"),  # nothing stored is lower
    ],
)
def test_a_budget_chooses_a_schedule(book, budget, name, source):
    selection = book.for_budget(budget)
    assert (selection.schedule.name, selection.source) == (name, source)
    guided = book.for_budget(budget, reuse=False)
    if source == "local-default":
        assert guided.source == "p-sigmoid-default"
        assert not guided.schedule.is_local
    else:
        assert guided == selection


@pytest.mark.parametrize(
    ("budget", "lower", "upper"),
    [(0.3, 0.25, 0.5), (0.49, 0.25, 0.5), (0.6, 0.5, 0.75), (0.8, 0.75, None)],
)
def test_a_budget_between_runs_between_its_two_neighbours(budget, lower, upper):
    stored = {
        value: replace(fastv(GEOMETRY, value), name=f"stored-{value}")
        for value in (0.75, 0.25, 0.5)  # in any order
    }
    book = ScheduleBook(GEOMETRY, [*stored.values(), LOSSLESS])
    above = stored[upper] if upper else book.by_name("full")
    assert book.for_budget(budget).schedule == interpolate(stored[lower], above, budget)


@pytest.mark.parametrize("stored", [[], [SEARCHED, LOSSLESS, uniform(GEOMETRY, 0.7)]])
@given(budgets, st.sampled_from([None, False, True]))
@settings(deadline=None, max_examples=100)
def test_every_budget_is_served_at_its_cost(stored, budget, reuse):
    selection = ScheduleBook(GEOMETRY, stored).for_budget(budget, reuse)
    assert abs(selection.schedule.mean_keep - budget) < 1e-9
    assert selection.schedule.geometry == GEOMETRY


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, "0.5", None, float("nan")])
def test_no_budget(book, budget):
    with pytest.raises(InvalidBudget):
        book.for_budget(budget)


def test_description_is_plain_and_states_its_prompt(book):
    rows = book.describe()
    assert json.loads(json.dumps(rows)) == rows
    assert [row["name"] for row in rows] == list(book.names())
    assert [row["source"] for row in rows] == ["searched", "full", "searched"]
    assert rows[1]["flops_fraction"] == 1.0
    assert rows[0]["keep"] == list(SEARCHED.keep)
    assert rows[0]["rules"] == [str(rule) for rule in SEARCHED.rules]
    assert all((row["n_vision"], row["n_text"]) == (576, 64) for row in rows)
    longer = book.describe(n_vision=2880, n_text=64)
    assert longer[0]["flops_fraction"] < rows[0]["flops_fraction"] < 1


@pytest.mark.parametrize(
    ("schedules", "error", "reason"),
    [
        ([fastv(OTHER, 0.5)], GeometryMismatch, "24L-.*12L-"),
        ([SEARCHED, SEARCHED], ScheduleError, "two schedules are named demo-0.25"),
        ([SEARCHED, replace(SEARCHED, name="again")], ScheduleError, "both claim budget 0.25"),
        ([replace(SEARCHED, name="p-sigmoid-0.25")], ScheduleError, "name of a built-in form"),
        ([replace(LOSSLESS, name="full")], ScheduleError, "name of a built-in form"),
        (
            [replace(fastv(GEOMETRY, 0.5), per_image_floor=0.5)],
            ScheduleError,
            "other keep rates, rules or per-image floor",
        ),
    ],
)
def test_what_a_book_refuses(schedules, error, reason):
    with pytest.raises(error, match=reason):
        ScheduleBook(GEOMETRY, schedules)


def test_a_built_in_form_may_be_stored_under_its_name():
    stored = uniform(GEOMETRY, 0.5)
    assert ScheduleBook(GEOMETRY, [stored]).by_name("uniform-0.5") is stored


def test_a_folder_of_schedules(tmp_path):
    SEARCHED.save(tmp_path / "b.json")
    LOSSLESS.save(tmp_path / "a.json")
    (tmp_path / "notes.txt").write_text("not a schedule")
    assert ScheduleBook.from_folder(GEOMETRY, tmp_path).names() == ("demo-0.25", "full", "lossless")
    assert ScheduleBook.from_folder(GEOMETRY, str(tmp_path)).by_name("lossless") == LOSSLESS


@pytest.mark.parametrize(
    ("schedule", "error", "reason"),
    [
        (fastv(OTHER, 0.5), GeometryMismatch, "was made for 24L-"),
        (SEARCHED, ScheduleError, "two schedules are named demo-0.25"),
        (replace(SEARCHED, name="again"), ScheduleError, "both claim budget"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, schedule, error, reason):
    SEARCHED.save(tmp_path / "a.json")
    schedule.save(tmp_path / "b.json")
    with pytest.raises(error, match=rf"b\.json: .*{reason}"):
        ScheduleBook.from_folder(GEOMETRY, tmp_path)


def test_a_bad_file_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ScheduleError, match=r"bad\.json: not valid JSON"):
        ScheduleBook.from_folder(GEOMETRY, tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ScheduleError, match="is no folder"):
        ScheduleBook.from_folder(GEOMETRY, tmp_path / "none")


STARTS = (0, 2, 4, 6, 8, 10)


def local(budget, cuts=(4,), name=None, rule="saliency"):
    """A schedule of this budget that keeps the same share from its first cut on, a bit less at each."""
    steps = [sum(layer >= cut for cut in cuts) for layer in range(12)]
    drop = (1 - budget) * 12 / sum(steps)
    keep = tuple(1 - drop * step for step in steps)
    rules = (RankRule.parse(rule),) * len(cuts)
    return Schedule(name or f"local-{budget}", GEOMETRY, keep, rules, "g-search", budget=budget)


def test_what_no_engine_of_these_bands_could_run_is_named(tmp_path):
    local(0.75, (3, 4), rule="self").save(tmp_path / "a.json")
    ScheduleBook.from_folder(GEOMETRY, tmp_path)
    with pytest.raises(ScheduleError, match=r"a\.json: .*rule self.*before layers \[3\]"):
        ScheduleBook.from_folder(GEOMETRY, tmp_path, STARTS)
    ScheduleBook(GEOMETRY, [local(0.75, (2, 4), rule="self")], STARTS)


def test_what_no_engine_with_these_modules_could_run_is_named(tmp_path):
    explicit(GEOMETRY, (1.0,) * 4 + (0.5,) * 8, ["atp"], name="judged").save(tmp_path / "a.json")
    for modules in (None, (2, 4)):
        ScheduleBook.from_folder(GEOMETRY, tmp_path, modules=modules).by_name("judged")
    with pytest.raises(
        ScheduleError, match=r"a\.json: .*before layer 4.* the server has none: start"
    ):
        ScheduleBook.from_folder(GEOMETRY, tmp_path, modules=())
    with pytest.raises(ScheduleError, match=r"has some before layers \[2\] alone"):
        ScheduleBook.from_folder(GEOMETRY, tmp_path, modules=[2])


def test_local_is_what_looks_at_nothing_behind_an_image():
    assert local(0.75).is_local
    assert uniform(GEOMETRY, 0.5).is_local
    assert not fastv(GEOMETRY, 0.5).is_local
    assert not full(GEOMETRY).is_local, "nothing is ranked: it is stock's own path"
    mixed = explicit(
        GEOMETRY,
        (1.0,) * 4 + (0.5,) * 4 + (0.2,) * 4,
        [RankRule.parse(r) for r in ("grid", "last")],
    )
    assert not mixed.is_local


@pytest.mark.parametrize(
    ("schedule", "starts", "why"),
    [
        (local(0.75), STARTS, None),
        (local(0.75, (3,)), None, None),
        (
            local(0.75, (3, 5, 8)),
            STARTS,
            r"cuts before layers \[3, 5\], .* start at \[0, 2, 4, 6, 8, 10\]",
        ),
        (fastv(GEOMETRY, 0.5), STARTS, "last ranks by what stands behind the image"),
    ],
)
def test_what_is_reused_cuts_where_bands_start(schedule, starts, why):
    book = ScheduleBook(GEOMETRY, [schedule], starts)
    row = next(row for row in book.describe() if row["name"] == schedule.name)
    assert (book.reuses(schedule), row["reuse"]) == (why is None, why is None)
    assert re.search(why, row["why_not_reused"]) if why else row["why_not_reused"] is None
    assert (book.for_budget(schedule.budget, reuse=True).source == "searched") is (why is None)
    assert book.for_budget(schedule.budget).source == "searched"
    guided = book.for_budget(schedule.budget, reuse=False)
    assert (guided.source == "searched") is (why is not None)


def test_full_budget_is_neither():
    book = ScheduleBook(GEOMETRY, (), STARTS)
    assert book.for_budget(1.0, reuse=True) == book.for_budget(1.0)
    row = book.describe()[0]
    assert (row["reuse"], row["why_not_reused"]) == (False, None)


def test_two_ladders_hold_the_same_budgets():
    both = [SEARCHED, local(0.25, (0,)), local(0.75), replace(fastv(GEOMETRY, 0.75), name="x")]
    book = ScheduleBook(GEOMETRY, both, STARTS)
    assert book.for_budget(0.25).schedule == SEARCHED
    assert book.for_budget(0.25, reuse=True).schedule == both[1]
    assert book.for_budget(0.75, reuse=True).schedule == both[2]
    assert book.for_budget(0.75).schedule == both[3]
    assert book.for_budget(0.75, reuse=False).schedule == both[3]
    with pytest.raises(ScheduleError, match=r"local-0.75 and again both claim budget 0.75"):
        ScheduleBook(GEOMETRY, [*both, local(0.75, (6,), "again")], STARTS)
    # where bands are not known, the one may be reused and the other not: both can be served
    unknown = ScheduleBook(GEOMETRY, [*both, local(0.75, (5,), "again")])
    assert unknown.by_name("again").budget == 0.75
    assert unknown.for_budget(0.75, reuse=True).schedule == both[2]
    # of one that the bands do not allow for, the rival is guided
    with pytest.raises(ScheduleError, match=r"x and again both claim budget 0.75"):
        ScheduleBook(GEOMETRY, [*both, local(0.75, (5,), "again")], STARTS)


@given(
    st.lists(st.sampled_from(STARTS[:3]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(STARTS[:3]), min_size=1, max_size=3, unique=True),
    budgets,
)
@settings(deadline=None, max_examples=60)
def test_what_is_between_reused_ones_is_reused(low, high, budget):
    stored = [local(0.5, tuple(sorted(low))), local(0.8, tuple(sorted(high)), rule="grid")]
    book = ScheduleBook(GEOMETRY, [*stored, SEARCHED, fastv(GEOMETRY, 0.6)], STARTS)
    selection = book.for_budget(budget, reuse=True)
    assert abs(selection.schedule.mean_keep - budget) < 1e-9
    assert selection.source == "full" or book.reuses(selection.schedule)
    if budget < 0.5 - 1e-9:
        assert selection.source == "local-default"
        assert selection.schedule == FORMS["divprune"](GEOMETRY, budget)
        assert book.by_name(selection.schedule.name if budget == 0.25 else "divprune-0.25").is_local


def test_a_folder_is_read_with_the_bands(tmp_path):
    local(0.75, (5,)).save(tmp_path / "a.json")
    assert ScheduleBook.from_folder(GEOMETRY, tmp_path).for_budget(0.75, True).source == "searched"
    book = ScheduleBook.from_folder(GEOMETRY, tmp_path, STARTS)
    assert book.for_budget(0.75, True).source == "local-default"


def scored(schedule, value, **changes):
    """The same with what a search says of it."""
    items = {"sha256": "a", "scores": 100, "search": 40}
    known = {"items": items, "objective": "accuracy", "versions": {"vllm": "1"}} | changes
    return replace(schedule, provenance={**known, "scores": {"value": value}})


@pytest.mark.parametrize(
    ("guided", "reused", "changes", "takes_the_reused"),
    [
        (0.5, 0.6, {}, True),
        (0.5, 0.515, {}, False),  # luck
        (0.6, 0.5, {}, False),
        (0.5, 0.6, {"items": {"sha256": "a", "scores": 100, "search": 60}}, True),
        (0.5, 0.6, {"items": {"sha256": "b", "scores": 100, "search": 40}}, False),
        (0.5, 0.6, {"versions": {"vllm": "2"}}, False),
        (0.5, 0.6, {"items": None}, False),
    ],
)
def test_who_does_not_say_gets_the_clearly_better_of_two(guided, reused, changes, takes_the_reused):
    """Whichever file is read first; what was scored on something else is not compared."""
    two = [scored(SEARCHED, guided), scored(local(0.25, (0,)), reused, **changes)]
    for stored in (two, two[::-1]):
        book = ScheduleBook(GEOMETRY, stored, STARTS)
        assert book.for_budget(0.25).schedule == two[takes_the_reused]
        assert book.for_budget(0.25, reuse=False).schedule == two[0]
        assert book.for_budget(0.25, reuse=True).schedule == two[1]


def test_between_and_below_the_two_kinds():
    """A folder that holds local schedules alone serves them to everybody."""
    book = ScheduleBook(GEOMETRY, [local(0.5, (0, 4)), local(0.75)], STARTS)
    assert book.for_budget(0.5).source == "searched"
    assert book.for_budget(0.6) == book.for_budget(0.6, reuse=True)
    assert book.for_budget(0.6, reuse=False).source == "p-sigmoid-default"
    both = ScheduleBook(GEOMETRY, [SEARCHED, local(0.5, (0, 4))], STARTS)
    between = both.for_budget(0.4)
    assert between.source == "interpolated"
    assert between.schedule == interpolate(SEARCHED, local(0.5, (0, 4)), 0.4)
