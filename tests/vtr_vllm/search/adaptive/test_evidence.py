"""What a family is worth on data that it was not made with, on outcomes made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.vtr_vllm.adaptive.families import GEOMETRY
from vtr_vllm.adaptive import Prompt, ScheduleFamily
from vtr_vllm.adaptive.family import Calibration, member
from vtr_vllm.schedules import RankRule
from vtr_vllm.search.adaptive import fitting
from vtr_vllm.search.adaptive.evidence import Outcomes, Row, row, rows, table
from vtr_vllm.search.statistics import bootstrap_interval, paired_difference

COSTS = (0.25, 0.75)
BUDGETS = (0.1, 0.5)
KINDS = ("counting", "reading")
SEED = 0


def outcomes(first: int, count: int) -> Outcomes:
    """Two kinds of prompt, told by a word, in which two other words tell opposite things.

    Every second prompt needs the dearer schedule: those with word 8 of the one kind, with word 7 of the
    other. Three prompts share an image.
    """
    numbers = range(first, first + count)
    hard = [n % 2 == 1 for n in numbers]
    kinds = [n // 2 % 2 for n in numbers]
    words = [7 + (is_hard != (kind == 1)) for is_hard, kind in zip(hard, kinds, strict=True)]
    prompts = [
        Prompt((20 + kind, word, 100 + n), (144,))
        for n, kind, word in zip(numbers, kinds, words, strict=True)
    ]
    scores = np.array([[float(not is_hard), 1.0] for is_hard in hard])
    groups = [n // 3 for n in range(count)]
    return Outcomes(prompts, [KINDS[kind] for kind in kinds], scores, [1.0] * count, groups)


CALIBRATION, HELDOUT = outcomes(0, 100), outcomes(1000, 120)


def made(calibration: Outcomes) -> ScheduleFamily:
    """The family of two schedules that a search makes of it."""
    members = tuple(
        member(f"family-{n}", GEOMETRY, (cost,) * 4, (RankRule.parse("saliency"),))
        for n, cost in enumerate(COSTS, 1)
    )
    known = calibration.scores, calibration.groups, SEED
    predictor, across = fitting.fit(fitting.matrix(calibration.prompts), *known)
    draws = np.array([prompt.draw for prompt in calibration.prompts])
    return ScheduleFamily("family", members, predictor, Calibration(across, draws))


FAMILY = made(CALIBRATION)


def found(calibration: Outcomes = CALIBRATION, heldout: Outcomes = HELDOUT) -> dict[str, Row]:
    """The rows at budget 0.5, by how the schedule is chosen."""
    every = rows(FAMILY, calibration, heldout, BUDGETS, SEED)
    assert {each["budget"] for each in every} == {0.5}, "0.1 is below what any schedule keeps"
    return {each["chooser"]: each for each in every}


def of_a_guess(told: Row) -> float:
    """The score if as many got each schedule, whichever: half of them are right with the cheap one."""
    cheap, dear = told["mix"]
    return float(0.5 * cheap + dear)


@pytest.fixture(scope="module")
def by_chooser() -> dict[str, Row]:
    return found()


def test_each_way_of_choosing_has_a_row(by_chooser: dict[str, Row]) -> None:
    assert list(by_chooser) == ["both", "words", "images", "unseen kind", "oracle"]
    for each in by_chooser.values():
        assert sum(each["mix"]) == pytest.approx(1)
        assert each["spent"] == pytest.approx(np.dot(each["mix"], COSTS), abs=1e-3)


def test_words_that_tell_are_worth_as_much_as_the_oracle(by_chooser: dict[str, Row]) -> None:
    """All images are alike, so that these by themselves are a guess."""
    assert by_chooser["oracle"]["score"] == 1.0
    assert by_chooser["oracle"]["spent"] == 0.5
    for name in ("both", "words"):
        assert by_chooser[name]["score"] > 0.95
        assert by_chooser[name]["spent"] == pytest.approx(0.5, abs=0.05)
    images = by_chooser["images"]
    assert images["score"] == pytest.approx(of_a_guess(images), abs=0.1)
    assert images["score"] < by_chooser["both"]["score"] - 0.05


def test_the_oracle_pays_the_price_at_which_right_answers_meet_the_budget_here() -> None:
    """By hand: of each five prompts two are right with either schedule, two with the dear one alone, one
    with neither.

    The oracle has the dear one for these two alone: a mean of (3 * 0.25 + 2 * 0.75) / 5 = 0.45. A budget of
    0.35 has it for half of them, told by their draws, and one of 0.25 for none.
    """
    scores = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]] * 20)
    prompts = [Prompt((20, 7, 5000 + n), (144,)) for n in range(len(scores))]
    own = Outcomes(prompts, [None] * 100, scores, [1.0] * 100, range(100))
    told = {
        each["budget"]: each
        for each in rows(FAMILY, CALIBRATION, own, (0.25, 0.35, 0.45, 0.75), SEED)
        if each["chooser"] == "oracle"
    }
    assert {budget: each["spent"] for budget, each in told.items()} == pytest.approx(
        {0.25: 0.25, 0.35: 0.35, 0.45: 0.45, 0.75: 0.45}
    )
    assert {budget: each["score"] for budget, each in told.items()} == pytest.approx(
        {0.25: 0.4, 0.35: 0.6, 0.45: 0.8, 0.75: 0.8}
    )
    assert [told[0.35]["mix"], told[0.45]["mix"]] == [[0.8, 0.2], [0.6, 0.4]]
    assert all(each["promised"] == budget for budget, each in told.items())


def test_a_kind_that_was_not_seen_is_judged_by_what_the_other_taught(
    by_chooser: dict[str, Row],
) -> None:
    """Here that is the opposite: worse than a guess."""
    unseen = by_chooser["unseen kind"]
    assert unseen["score"] < of_a_guess(unseen) - 0.1 < by_chooser["both"]["score"] - 0.1


def test_one_kind_or_none_has_no_unseen_one() -> None:
    for kind in ("counting", None):
        alike = replace(CALIBRATION, kinds=[kind] * len(CALIBRATION.prompts))
        assert "unseen kind" not in found(alike)


def test_a_kind_beside_which_there_is_too_little_is_judged_by_all(
    by_chooser: dict[str, Row],
) -> None:
    few = ["reading"] * 9 + ["counting"] * (len(CALIBRATION.prompts) - 9)
    heldout = replace(HELDOUT, kinds=["counting"] * len(HELDOUT.prompts))
    unseen = found(replace(CALIBRATION, kinds=few), heldout)["unseen kind"]
    assert unseen["score"] == by_chooser["both"]["score"]


def test_a_row_has_intervals_of_whole_groups() -> None:
    scores, full = [1.0, 1.0, 0.0, 1.0, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    groups = [0, 0, 1, 1, 2, 2]
    told = row("both", 0.5, 0.48, 0.47, scores, full, groups)
    low, high = bootstrap_interval(scores, groups)
    difference, below, above = paired_difference(scores, full, groups)
    assert told == {
        "chooser": "both",
        "budget": 0.5,
        "promised": 0.48,
        "spent": 0.47,
        "score": pytest.approx(3.5 / 6),
        "low": low,
        "high": high,
        "minus_full": {"difference": difference, "low": below, "high": above},
    }
    assert (low, high) != bootstrap_interval(scores)


def test_rows_have_the_intervals_of_the_held_out_groups(by_chooser: dict[str, Row]) -> None:
    told = by_chooser["unseen kind"]
    alone = replace(HELDOUT, groups=range(len(HELDOUT.prompts)))
    assert told["low"] != found(heldout=alone)["unseen kind"]["low"]
    assert told["low"] < told["score"] < told["high"]
    assert told["minus_full"]["difference"] == pytest.approx(told["score"] - 1)


def test_a_table_a_split() -> None:
    told = row("both", 0.5, 0.48, 0.47, [1.0, 0.0], [1.0, 1.0], [0, 1])
    told |= {"low": 0.25, "high": 0.75}
    text = table({"heldout": [told], "hard": []})
    assert text.splitlines() == [
        "**heldout**",
        "",
        "| budget | chooser | spent | score | 95% | minus full |",
        "|---:|---|---:|---:|---|---:|",
        "| 0.5 | both | 0.470 | 50.0 | 25.0-75.0 | -50.0 |",
        "",
        "**hard**",
        "",
        "| budget | chooser | spent | score | 95% | minus full |",
        "|---:|---|---:|---:|---|---:|",
    ]
