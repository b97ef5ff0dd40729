import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, options, study
from vtr_vllm.errors import TimeLimitReached
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.pipeline import HeldOutScores, Result, plan, run
from vtr_vllm.search_options import KINDS

LAYERS, N_VISION = 6, 16
BUDGETS = (0.6, 0.4)
SETTINGS = options(budgets=list(BUDGETS), tolerance=0.02, trials=10, items=100, seed=3)
METHODS = {
    "g-search": {"g-search"},
    "p-sigmoid": {"g-search", "p-sigmoid"},
    "all": {
        "g-search",
        "p-sigmoid",
        "g-search-blind",
        "p-sigmoid-rules",
        "descent",
        "lossless",
    },
}
OF_A_BUDGET = {"p-sigmoid", "p-sigmoid-rules", "descent"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return items(tmp_path_factory.mktemp("pipeline"), 200)


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    return items(tmp_path_factory.mktemp("selection"), 100, first=200)


def new_study(data, objective="accuracy", has_cls=True):
    return study(SimulatedEvaluator(LAYERS, (N_VISION,), has_cls=has_cls), data, objective)


@pytest.fixture(scope="module")
def searched(data):
    """A study with what was found, the most that there is."""
    done = new_study(data)
    return done, run(done, SETTINGS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_its_schedules(data, searched, kind):
    found = searched[1] if kind == "all" else None
    result = found or run(new_study(data), SETTINGS.model_copy(update={"kind": kind}))
    assert set(result.schedules) == METHODS[kind]
    for method, schedules in result.schedules.items():
        if method in OF_A_BUDGET:
            assert [schedule.budget for schedule in schedules] == list(BUDGETS)
            for schedule in schedules:
                assert schedule.mean_keep == pytest.approx(schedule.budget, abs=1e-9)
        else:
            (schedule,) = schedules
            assert schedule.budget is None
    searches = {"p-sigmoid", "p-sigmoid-rules"} & METHODS[kind]
    assert set(result.trials) == searches
    for name, trials in result.trials.items():
        assert [trial.order for trial in trials] == list(range(10)) * len(BUDGETS)
        taken = [trial for trial in trials if trial.taken]
        assert [trial.budget for trial in taken] == sorted(BUDGETS, reverse=True)
        for trial in taken:
            (found,) = (s for s in result.schedules[name] if s.budget == trial.budget)
            assert (found.keep, found.rules) == (trial.schedule.keep, trial.schedule.rules)
    assert set(result.steps) == {"g-search", "g-search-blind"} & METHODS[kind]
    assert set(result.rules) == ({"guided"} if kind == "all" else set())


def test_what_loses_no_quality_is_within_the_tolerance(searched):
    done, result = searched
    floor = done.unreduced().value - SETTINGS.tolerance
    for method in ("g-search", "g-search-blind", "lossless"):
        (schedule,) = result.schedules[method]
        (found,) = done.evaluate("check", [Candidate.of(schedule, N_VISION)])
        assert found.value >= floor
        assert schedule.mean_keep < 1
    (greedy,), (least,) = result.schedules["g-search-blind"], result.schedules["lossless"]
    assert least.mean_keep <= greedy.mean_keep


def test_each_method_beats_or_equals_the_one_before_on_its_items(searched):
    done, result = searched
    methods = ("p-sigmoid-rules", "descent")
    for before, after in zip(*(result.schedules[method] for method in methods), strict=True):
        candidates = [Candidate.of(schedule, N_VISION) for schedule in (before, after)]
        first, second = done.evaluate("check", candidates, SETTINGS.items)
        assert second.value >= first.value


def test_same_seed_same_result(data, searched):
    assert run(new_study(data), SETTINGS) == searched[1]


def test_another_seed_other_trials(data, searched):
    settings = SETTINGS.model_copy(update={"kind": "p-sigmoid", "seed": 4})
    found = run(new_study(data), settings)
    assert found.schedules["g-search"] == searched[1].schedules["g-search"]
    assert found.trials["p-sigmoid"] != searched[1].trials["p-sigmoid"]


def test_each_budget_begins_with_the_best_of_the_one_before(searched):
    for trials in searched[1].trials.values():
        first = [trial for trial in trials if trial.budget == max(BUDGETS)]
        second = [trial for trial in trials if trial.budget == min(BUDGETS)]
        best = max(first, key=lambda trial: (trial.value, -trial.order))
        assert best.parameters in [trial.parameters for trial in second]


def test_cls_is_tried_where_the_model_has_it(data, searched):
    others = {"saliency", "random", "grid", "prefix", "orthogonal", "diverse"}
    assert set(searched[1].rules["guided"].values[0]) == {*others, "cls", "cls-rows", "cls-spread"}
    found = run(
        new_study(data, has_cls=False), SETTINGS.model_copy(update={"trials": 1, "budgets": (0.5,)})
    )
    assert set(found.rules["guided"].values[0]) == others


def test_the_best_of_each_budget_is_selected(searched, rest):
    _, result = searched
    selection = new_study(rest)
    chosen = HeldOutScores(selection).best(result)
    budgets = [scored.schedule.budget for scored in chosen]
    assert sorted(b for b in budgets if b) == sorted(BUDGETS)
    assert [c.method for c in chosen if c.schedule.budget is None] == [
        method for method in result.schedules if method not in OF_A_BUDGET
    ]
    for scored in chosen:
        if scored.schedule.budget is None:
            continue
        rivals = [
            (method, schedule)
            for method, schedules in result.schedules.items()
            for schedule in schedules
            if schedule.budget == scored.schedule.budget
        ]
        assert {method for method, _ in rivals} == OF_A_BUDGET
        candidates = [Candidate.of(schedule, N_VISION) for _, schedule in rivals]
        values = [found.value for found in selection.evaluate("check", candidates)]
        assert scored.evaluation.value == max(values)
        assert (scored.method, scored.schedule) == rivals[values.index(max(values))]


def test_of_equals_the_earlier_method_is_selected(searched, rest):
    schedules = searched[1].schedules
    same = schedules["p-sigmoid"]
    result = Result(schedules={"p-sigmoid": same, "descent": same})
    assert {scored.method for scored in HeldOutScores(new_study(rest)).best(result)} == {
        "p-sigmoid"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_stages_that_run_are_those_planned(data, kind, searched):
    done = searched[0] if kind == "all" else new_study(data)
    settings = SETTINGS.model_copy(update={"kind": kind})
    run(done, settings)
    planned = plan(settings, done.geometry, N_VISION, len(data), rest=10)
    ran = {stage: cost.requests for stage, cost in done.costs.items() if stage != "check"}
    assert ran.keys() == planned.keys() - {"selection"}
    assert all(requests > 0 for requests in planned.values())
    assert planned["unreduced"] == ran["unreduced"]


def test_a_search_without_labels(data, rest):
    done = new_study(data, "label-free")
    result = run(done, SETTINGS.model_copy(update={"trials": 6}))
    assert set(result.schedules) == METHODS["all"]
    assert done.unreduced().value == 0
    for trials in result.trials.values():
        assert all(trial.value <= 0 for trial in trials)
    chosen = HeldOutScores(new_study(rest, "label-free")).best(result)
    assert {scored.schedule.budget for scored in chosen} == {None, *BUDGETS}


def test_every_schedule_is_told_as_it_is_found(data, searched):
    """And a selection that is asked each time scores each schedule once."""
    told = []
    selection = HeldOutScores(new_study(data))

    def more(result):
        best = selection.best(result)
        told.append(({m: len(found) for m, found in result.schedules.items()}, len(best)))

    result = run(new_study(data), SETTINGS, more)
    assert result == searched[1]
    assert [sum(counts.values()) for counts, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] == {method: len(found) for method, found in result.schedules.items()}
    assert [best for _, best in told] == [1, 2, 3, 4, 4, 4, 4, 4, 5]
    cost = selection.study.costs["selection"]
    assert cost.evaluations == len(told)


def test_at_the_time_limit_what_was_found_is_there(data):
    done = new_study(data)
    told = []

    def more(result):
        told.append(list(result.schedules))
        done._until = 0  # from the first schedule on

    with pytest.raises(TimeLimitReached, match="the same command goes on"):
        run(done, SETTINGS.model_copy(update={"kind": "p-sigmoid"}), more)
    assert told == [["g-search"]]
    assert set(done.costs) == {"unreduced", "g-search", "p-sigmoid"}
