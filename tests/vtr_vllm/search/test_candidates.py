"""What is evaluated: keep rates with their rules, and what happens to the image."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.vtr_vllm.schedules.strategies import curves
from vtr_vllm.errors import ScheduleError
from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule, make_plan
from vtr_vllm.search.candidates import Candidate, scaled, unreduced

LAYERS = 6
GEOMETRY = ModelGeometry(LAYERS, 8, 16, 2, 1, 4)
LAST, SALIENCY = RankRule.parse("last"), RankRule.parse("saliency")
candidates = st.builds(
    lambda curve, scale: Candidate(*curve, scale), curves(LAYERS), st.floats(0.01, 1.0)
)
schedules = curves(LAYERS).map(lambda curve: Schedule("drawn", GEOMETRY, *curve, method="drawn"))


@given(candidates)
def test_a_candidate_survives_json(candidate):
    again = Candidate.from_dict(json.loads(json.dumps(candidate.to_dict())))
    assert again == candidate
    assert again.key == candidate.key


@given(candidates, candidates)
def test_equal_candidates_and_no_others_share_a_key(one, other):
    assert (one.key == other.key) == (one == other)


def test_the_key_is_the_same_in_every_run():
    """Journals name candidates by it: a change orphans every row that is there."""
    candidate = Candidate((1.0, 1.0, 0.5, 0.25), (LAST, RankRule.parse("previous")), 0.5)
    assert candidate.key == "61637794ddd16982caa5ec23"


@given(schedules, st.integers(1, 700))
def test_a_schedule_for_known_prompts_is_its_counts(schedule, n_vision):
    candidate = Candidate.of(schedule, n_vision)
    wanted = make_plan(schedule.keep, schedule.rules, n_vision)
    assert make_plan(candidate.keep, candidate.rules, n_vision) == wanted


@given(schedules)
def test_a_schedule_for_any_prompt_is_itself(schedule):
    candidate = Candidate.of(schedule)
    assert (candidate.keep, candidate.rules) == (schedule.keep, schedule.rules)


@given(st.data(), st.integers(1, 700))
def test_counts_become_what_keeps_them(data, n_vision):
    drawn = data.draw(st.lists(st.integers(0, n_vision), min_size=LAYERS, max_size=LAYERS))
    counts = sorted(drawn, reverse=True)
    rules = [SALIENCY] * 2 + [LAST] * (LAYERS - 2)
    candidate = Candidate.from_counts(counts, rules, n_vision)
    plan = make_plan(candidate.keep, candidate.rules, n_vision)
    assert plan.counts == tuple(counts)
    assert list(plan.rules) == [rules[cut] for cut in plan.cuts]
    assert candidate.reduces == (counts[-1] < n_vision)


def test_rules_of_layers_without_a_cut_are_left_out():
    rules = [RankRule.parse("random"), SALIENCY, LAST, RankRule.parse("instruction")]
    candidate = Candidate.from_counts((8, 8, 4, 4), rules, 8)
    assert candidate == Candidate((1.0, 1.0, 0.5, 0.5), (LAST,))


def test_no_reduction_asks_for_nothing():
    whole = unreduced(GEOMETRY)
    assert not whole.reduces
    assert whole.vtr_field() == {}
    assert Candidate(whole.keep, image_scale=0.5).vtr_field() == {}
    cut = Candidate((1.0, 1.0, 0.5), (LAST,))
    assert cut.reduces
    assert cut.vtr_field() == {"keep": [1.0, 1.0, 0.5], "rules": ["last"]}


@pytest.mark.parametrize(
    ("keep", "rules", "scale", "said"),
    [
        ((1.0, 0.5, 0.75), (LAST, LAST), 1.0, "keep"),
        ((1.0, 0.5), (), 1.0, "0 rank rules for 1 cuts"),
        ((1.0, 0.5), (LAST,), 1.0, "attention ranks from layer"),
        ((1.0, float("nan")), (), 1.0, "nan"),
        ((1.0, 1.0), (), 0.0, "image_scale is 0.0"),
        ((1.0, 1.0), (), 1.5, "image_scale is 1.5"),
        ((1.0, 1.0), (), float("nan"), "image_scale is nan"),
    ],
)
def test_what_is_malformed_is_refused(keep, rules, scale, said):
    with pytest.raises(ScheduleError, match=said):
        Candidate(keep, rules, scale)


@given(st.integers(4, 120), st.integers(4, 120), st.floats(0.05, 0.9))
def test_a_scaled_image_takes_that_share_of_its_canvas(width, height, scale):
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width, height // 4))  # so the canvas is blue
    small = scaled(image, scale)
    assert small.size == image.size
    pixels = np.asarray(small)
    shown = np.argwhere((pixels != (0, 0, 255)).any(axis=-1))
    side = scale**0.5
    assert len(shown) > 0
    assert shown[:, 0].max() < max(1, round(height * side))
    assert shown[:, 1].max() == max(1, round(width * side)) - 1


def test_the_whole_image_is_not_touched():
    image = Image.new("RGB", (10, 10), "red")
    assert scaled(image, 1.0) is image
