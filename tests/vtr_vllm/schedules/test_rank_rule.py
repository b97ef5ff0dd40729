import itertools

import pytest

from vtr_vllm.errors import ScheduleError
from vtr_vllm.schedules import RankRule

ALL = [
    *(
        score + rope + heads
        for score, rope, heads in itertools.product(
            ["last", "instruction"], ["", "-norope"], ["", "-max"]
        )
    ),
    *["saliency", "cls", "random", "previous"],
]


@pytest.mark.parametrize("text", ALL)
def test_short_text_round_trips(text):
    assert str(RankRule.parse(text)) == text


def test_parsed_fields():
    assert RankRule.parse("last-norope-max") == RankRule("last", rope=False, heads="max")
    assert RankRule.parse("instruction") == RankRule("instruction", rope=True, heads="mean")


@pytest.mark.parametrize(
    "text",
    [
        *["", "Last", "last-", "last-max-norope", "last-norope-norope", "saliency-max"],
        *["cls-norope", "previous-max", " last", "last\n", "x" * 10**5],
        *[None, 1, ["last"], b"last"],
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ScheduleError) as caught:
        RankRule.parse(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "values", [{"score": "mean"}, {"score": "last", "heads": "min"}, {"score": "last", "rope": 1}]
)
def test_other_values_are_refused(values):
    with pytest.raises(ScheduleError):
        RankRule(**values)


@pytest.mark.parametrize("score", ["saliency", "cls", "random", "previous"])
@pytest.mark.parametrize("change", [{"rope": False}, {"heads": "max"}])
def test_only_attention_has_heads_and_positions(score, change):
    with pytest.raises(ScheduleError, match="uses no attention"):
        RankRule(score, **change)


def test_what_a_rule_needs():
    needs = [rule for rule in ALL if RankRule.parse(rule).needs_attention]
    blind = [rule for rule in ALL if RankRule.parse(rule).question_blind]
    assert all(rule.startswith(("last", "instruction")) for rule in needs)
    assert len(needs) == 8
    assert blind == ["saliency", "cls", "random"]
