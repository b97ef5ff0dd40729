"""The local family: where it cuts, by which rules, under which names."""

from dataclasses import replace

import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, options, study
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import ScheduleBook, see_no_question
from vtr_vllm.search import records
from vtr_vllm.search.families import families, family_of, local_rules, local_starts, paper_layout
from vtr_vllm.search.frontier import SINGLE_CUT, contenders
from vtr_vllm.search.pipeline import HeldOutScores, plan, run
from vtr_vllm.search_options import KINDS

LAYERS, N_VISION, BANDS = 8, 20, (0, 3, 6)
BUDGETS = (0.6, 0.4)
SETTINGS = options(budgets=list(BUDGETS), tolerance=0.02, trials=5, items=100, family="local")
LOCAL = {"g-search-local", "p-sigmoid-local", "descent-local", "lossless-local"}
METHODS = {
    "g-search": {"g-search-local"},
    "p-sigmoid": {"g-search-local", "p-sigmoid-local"},
    "all": LOCAL,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return items(tmp_path_factory.mktemp("families"), 100)


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    return items(tmp_path_factory.mktemp("rest"), 100, first=200)


def new_study(data, bands=BANDS, has_cls=True):
    return study(SimulatedEvaluator(LAYERS, (N_VISION,), has_cls=has_cls, bands=bands), data)


@pytest.fixture(scope="module")
def found(data):
    """What each family finds, searched alone or both."""
    done = {}
    for family in ("guided", "local", "both"):
        ran = new_study(data)
        done[family] = ran, run(ran, SETTINGS.model_copy(update={"family": family}))
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_local_schedules_see_no_question_and_cut_at_bands(data, kind):
    done = new_study(data)
    settings = SETTINGS.model_copy(update={"kind": kind})
    result = run(done, settings)
    assert set(result.schedules) == METHODS[kind]
    for candidate in {task.candidate for task in done._evaluator.tasks}:
        assert see_no_question(candidate.rules)
        rates = (1.0, *candidate.keep)
        assert {i for i in range(LAYERS) if rates[i + 1] < rates[i]} <= set(BANDS)
    book = ScheduleBook(done.geometry, band_starts=BANDS)
    for method in result.schedules:
        for schedule in result.schedules[method]:
            assert book.reuses(schedule)
            assert (schedule.budget is None) == ("search" in method or "lossless" in method)
            if schedule.budget is not None:
                assert schedule.mean_keep == pytest.approx(schedule.budget, abs=1e-9)
                assert schedule.name == f"{method}-{schedule.budget}"
    ran = set(done.costs)
    planned = plan(settings, done.geometry, N_VISION, len(data), 10, BANDS)
    assert ran == planned.keys() - {"selection"}
    assert all(requests > 0 for requests in planned.values())


def test_every_local_rule_is_tried_where_it_can_rank(found):
    table = found["local"][1].rules["local"]
    assert list(table.values) == list(BANDS)
    blind = {"diverse", "grid", "orthogonal", "prefix", "random", "saliency"}
    first = blind | {"cls", "cls-rows", "cls-spread"}
    assert set(table.values[0]) == first
    for layer in BANDS[1:]:
        assert set(table.values[layer]) == first | {"self", "self-max"}
    without = {str(rule) for rule in local_rules(6, has_cls=False)}
    assert without == blind | {"self", "self-max"}


def test_the_paper_s_form_is_self_behind_diverse(data):
    layout = paper_layout("local", new_study(data))
    assert layout.starts == BANDS
    assert {k: str(v) for k, v in layout.rules.items()} == {0: "diverse", 3: "self", 6: "self"}


def test_both_is_guided_and_then_local(found):
    guided, local, both = (found[family][1] for family in ("guided", "local", "both"))
    assert both.schedules == guided.schedules | local.schedules
    assert list(both.schedules) == [*guided.schedules, *local.schedules]
    tasks = [found[family][0]._evaluator.tasks for family in ("guided", "both")]
    assert tasks[1][: len(tasks[0])] == tasks[0]
    assert set(guided.rules) == {"guided"}
    assert LOCAL.isdisjoint(guided.schedules)
    assert {family_of(method) for method in local.schedules} == {"local"}
    assert families("both") == ("guided", "local")


def test_guided_asks_the_same_whatever_the_bands(data, found):
    class NoBands(SimulatedEvaluator):
        @property
        def band_starts(self):
            raise AssertionError("a guided search asked for the bands")

        @band_starts.setter
        def band_starts(self, _): ...

    done = study(NoBands(LAYERS, (N_VISION,), has_cls=True), data)
    assert run(done, SETTINGS.model_copy(update={"family": "guided"})) == found["guided"][1]
    assert done._evaluator.tasks == found["guided"][0]._evaluator.tasks


def test_a_budget_has_a_schedule_of_each_family(found, rest, tmp_path):
    """And a server takes the folder: each in the ladder where it stands."""
    done, result = found["both"]
    selection = HeldOutScores(new_study(rest))
    written = [
        records.served(each, done, selection.study, 0, "0" * 64, selection.family(each.schedule))
        for each in selection.best(result)
    ]
    names = {schedule.name for schedule in written}
    assert names >= {f"{m}-{b}" for m in ("searched", "local-searched") for b in BUDGETS}
    assert names >= {"g-search-local", "local-lossless", "lossless"}
    records.write_schedules(tmp_path, written)
    book = ScheduleBook.from_folder(done.geometry, tmp_path, BANDS)
    for budget in BUDGETS:
        for reuse, name in ((False, "searched"), (True, "local-searched")):
            chosen = book.for_budget(budget, reuse)
            assert (chosen.source, chosen.schedule.name) == ("searched", f"{name}-{budget}")
    record = records.search_record({}, done, selection, result, written, {})
    assert {each["family"] for each in record["schedules"]} == {"guided", "local"}
    entries = list(contenders(record, book, BUDGETS, N_VISION, has_cls=True))
    cuts = [entry.schedule for entry in entries if entry.method == SINGLE_CUT]
    assert [cut.budget for cut in cuts] == list(BUDGETS)
    assert {str(cut.rules[0]) for cut in cuts} == {str(result.rules["local"].rules[0])}
    assert all(cut.cuts == (0,) for cut in cuts)
    between = [e.schedule for e in entries if e.method == "local-interpolated"]
    assert [schedule.budget for schedule in between] == [0.5]
    assert all(book.reuses(schedule) for schedule in between)


@pytest.mark.parametrize("family", ["guided", "both"])
def test_a_guided_schedule_that_turned_out_local_stands_among_the_local_ones(
    found, rest, tmp_path, family
):
    """By whatever search: a later one for local schedules takes its place, and a server the folder."""
    _, local = found["local"]
    result = replace(found[family][1], schedules={"descent": local.schedules["p-sigmoid-local"]})
    selection = HeldOutScores(new_study(rest))
    best = selection.best(result)
    assert {selection.family(each.schedule) for each in best} == {"local"}
    for written in (best, selection.best(local)):
        records.write_schedules(
            tmp_path,
            [
                records.served(
                    *(each, selection.study, selection.study, 0, "0" * 64),
                    selection.family(each.schedule),
                )
                for each in written
            ],
        )
    book = ScheduleBook.from_folder(selection.study.geometry, tmp_path, BANDS)
    assert {f"local-searched-{budget}" for budget in BUDGETS} <= set(book.names())


def test_a_band_before_layer_1_is_no_place():
    assert local_starts((0, 1, 2, 3)) == (0, 2, 3)


def test_one_band_leaves_nothing_to_search(data):
    done = new_study(data, bands=(0,))
    with pytest.raises(ConfigurationError, match=r"divprune-<budget>; give the engine more bands"):
        run(done, SETTINGS)
    assert done._evaluator.runs == 0
    with pytest.raises(ConfigurationError, match="--family guided"):
        plan(SETTINGS, LAYERS, N_VISION, 100, 10, (0,))
