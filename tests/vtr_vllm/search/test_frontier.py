import json
from dataclasses import replace
from statistics import mean

import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.schedules import RankRule, ScheduleBook, p_sigmoid, uniform
from vtr_vllm.search.baselines import DOWNSAMPLE, SCHEDULES
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.candidates import unreduced
from vtr_vllm.search.frontier import HAWK, compare, contenders, meta
from vtr_vllm.search.statistics import bootstrap_interval, paired_difference

LAYERS, N_VISION = 8, 24
BUDGETS = (0.6, 0.25, 0.2)
EVALUATOR = SimulatedEvaluator(LAYERS, (N_VISION,))
GEOMETRY = EVALUATOR.geometry


def described(method, schedule):
    """A schedule as search.json has it."""
    return {
        "name": schedule.name,
        "method": method,
        "budget": schedule.budget,
        "keep": list(schedule.keep),
        "rules": [str(rule) for rule in schedule.rules],
    }


FOUND = [p_sigmoid(GEOMETRY, budget, k=1.0, alpha=4.0) for budget in BUDGETS]
SERVED = [replace(schedule, name=f"searched-{schedule.budget}") for schedule in FOUND]
RECORD = {
    "schedules": [
        *(described("p-sigmoid", schedule) for schedule in FOUND),
        *(described("searched", schedule) for schedule in SERVED),
    ],
    "rules": {"weighed": {"2": "last:90", "4": "last:12"}},
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    evaluator = SimulatedEvaluator(LAYERS, (N_VISION,))
    return {
        "heldout": study(evaluator, items(folder, 100, name="heldout.jsonl")),
        "hard": study(evaluator, items(folder, 40, first=100, name="hard.jsonl")),
    }


@pytest.fixture(scope="module")
def entries():
    return list(contenders(RECORD, ScheduleBook(GEOMETRY, SERVED), BUDGETS, N_VISION, has_cls=True))


@pytest.fixture(scope="module")
def rows(studies, entries):
    return compare(studies, entries, GEOMETRY)


def test_everything_stands_beside_every_baseline(entries):
    assert entries[0].method == "full"
    for budget in BUDGETS:
        methods = [entry.method for entry in entries if entry.budget == budget]
        assert sorted(methods) == sorted([*SCHEDULES, DOWNSAMPLE, HAWK, "p-sigmoid", "searched"])
    between = [entry.budget for entry in entries if entry.method == "interpolated"]
    assert between == pytest.approx([0.225, 0.425])


def test_rows_of_a_budget_have_its_mean_keep(rows):
    """Within a token per layer, which whole counts may be off."""
    for row in rows:
        if row["reachable"]:
            assert row["mean_keep"] == pytest.approx(row["budget"], abs=1 / N_VISION)


def test_what_cannot_be_met_is_a_row_with_the_reason(rows):
    missing = [row for row in rows if not row["reachable"]]
    assert {(row["method"], row["budget"]) for row in missing} == {
        ("feather", 0.2),
        ("illava", 0.2),
        ("priortr", 0.2),
        ("hawk", 0.2),
        ("sparsevlm", 0.2),
        ("vtw", 0.6),
        ("vtw", 0.2),
        ("random", 0.2),
        ("fastv", 0.2),
        ("pdrop", 0.2),
    }
    for row in missing:
        assert "cannot meet" in row["why_not"]
        assert row["splits"] == {}
        assert row["mean_keep"] is row["flops_fraction"] is row["keep"] is None


def test_scores_are_those_of_the_row_s_own_schedule(studies, entries, rows):
    assert len(rows) == len(entries)
    for entry, row in zip(entries, rows, strict=True):
        assert (row["name"], row["method"]) == (entry.name, entry.method)
        if entry.candidate is None:
            continue
        for name, one in studies.items():
            outcomes = one.evaluate("check", [entry.candidate])[0].outcomes
            scores = [o.score for o in outcomes]
            full = [o.score for o in one.unreduced().outcomes]
            found = row["splits"][name]
            assert found["logp"] == pytest.approx(mean(o.logprob for o in outcomes))
            assert found["n"] == len(one.dataset)
            assert found["score"] == pytest.approx(sum(scores) / len(scores))
            assert (found["low"], found["high"]) == bootstrap_interval(scores)
            paired = found["minus_full"]
            assert (paired["difference"], paired["low"], paired["high"]) == paired_difference(
                scores, full
            )
            assert paired["low"] <= paired["difference"] <= paired["high"]


def test_questions_about_one_image_are_no_independent_ones(tmp_path):
    """Their intervals are of images, also that of the difference."""
    data = items(tmp_path, 60)
    shared = [replace(item, image_hash=str(n // 3)) for n, item in enumerate(data.items)]
    one = study(SimulatedEvaluator(LAYERS, (N_VISION,)), Dataset(data.path, tuple(shared)))
    book = ScheduleBook(GEOMETRY)
    entries = list(contenders({"schedules": []}, book, (0.6,), N_VISION, True))
    groups = [n // 3 for n in range(60)]
    full = [o.score for o in one.unreduced().outcomes]
    for entry, row in zip(entries, compare({"shared": one}, entries, GEOMETRY), strict=True):
        if entry.candidate is None:
            continue
        scores = [o.score for o in one.evaluate("check", [entry.candidate])[0].outcomes]
        found = row["splits"]["shared"]
        assert (found["low"], found["high"]) == bootstrap_interval(scores, groups)
        assert tuple(found["minus_full"].values()) == paired_difference(scores, full, groups)


def test_the_law_shows_in_the_rows(rows):
    """Less work, lower scores; and no reduction is no different from itself."""
    by_name = {row["name"]: row for row in rows}
    assert by_name["full"]["splits"]["heldout"]["minus_full"]["difference"] == 0
    scores = [by_name[f"searched-{b}"]["splits"]["heldout"]["score"] for b in BUDGETS]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]
    work = [by_name[f"uniform-{budget}"]["flops_fraction"] for budget in BUDGETS]
    assert 1 == by_name["full"]["flops_fraction"] > work[0] > work[1] > work[2] > 0
    scaled = by_name["downsample-0.25"]
    assert scaled["keep"] == by_name["uniform-0.25"]["keep"]
    assert scaled["flops_fraction"] == pytest.approx(by_name["uniform-0.25"]["flops_fraction"])


def test_kinds_are_scored_by_themselves(rows):
    for row in rows:
        for found in row["splits"].values():
            kinds = found["kinds"]
            assert set(kinds) == {"plain", "dark"}
            assert sum(kind["n"] for kind in kinds.values()) == found["n"]
            total = sum(kind["n"] * kind["score"] for kind in kinds.values())
            assert total / found["n"] == pytest.approx(found["score"])


def test_rows_are_plain_json(rows, studies):
    text = json.dumps({"meta": meta(studies, GEOMETRY), "rows": rows}, allow_nan=False)
    splits = json.loads(text)["meta"]["splits"]
    assert {name: split["n"] for name, split in splits.items()} == {"heldout": 100, "hard": 40}
    assert splits["hard"]["sha256"] == studies["hard"].dataset.sha256


def test_a_schedule_s_rules_are_kept(rows):
    by_name = {row["name"]: row for row in rows}
    for budget, schedule in zip(BUDGETS, FOUND, strict=True):
        row = by_name[f"searched-{budget}"]
        assert row["rules"] == [str(rule) for rule in schedule.rules]
        assert row["keep"] == list(schedule.keep)
    assert by_name["uniform-0.25"]["rules"] == [str(RankRule.parse("saliency"))]
    assert by_name["uniform-0.25"]["keep"] == list(uniform(GEOMETRY, 0.25).keep)
    assert by_name["full"]["keep"] == list(unreduced(GEOMETRY).keep)
    assert by_name["hawk-0.25"]["rules"] == ["last:90"]
    assert by_name["hawk-0.25"]["keep"] == by_name["fastv-0.25"]["keep"]
