"""What a rank rule is called, and what it takes."""

from __future__ import annotations

import pickle

import pytest

from vtr_vllm.errors import ScheduleError
from vtr_vllm.ranking import RULES, Need, RankRule, check_heads
from vtr_vllm.ranking.rules.instruction import Instruction
from vtr_vllm.ranking.rules.last import Last


def test_the_text_of_a_rule_that_schedules_hold():
    """Stored schedules name these; none may change its text."""
    texts = {str(rule) for kind in RULES.values() for rule in kind.forms()}
    options = ["", "-norope", "-max", "-norope-max"]
    attention = {rule + option for rule in ("last", "instruction") for option in options}
    blind = {"saliency", "cls", "random", "grid", "prefix", "orthogonal", "diverse"}
    assert attention | blind | {"previous"} <= texts


def test_parsed_fields():
    assert RankRule.parse("last-norope-max") == Last(rope=False, heads="max")
    assert RankRule.parse("instruction") == Instruction(rope=True, heads="mean")
    assert RankRule.parse("last-norope-prior") == Last(rope=False, prior=True)
    assert RankRule.parse("last-norope:904") == Last(rope=False, weights="904")
    assert str(Last(weights="90", merge="nearest")) == "last:90+nearest"
    assert RankRule.parse("last") != RankRule.parse("instruction")
    assert RankRule.parse("cls") != RankRule.parse("random")
    assert len({RankRule.parse(name) for name in RULES for _ in range(2)}) == len(RULES)


@pytest.mark.parametrize(
    "text", ["last:", "last:9x", "last:00", "last-max:90", "self:", "last:9 0"]
)
def test_weights_of_heads_are_digits(text):
    with pytest.raises(ScheduleError, match="write a digit for each query head"):
        RankRule.parse(text)


@pytest.mark.parametrize("text", ["cls:90", "diverse:90", "previous:90"])
def test_rules_without_attention_heads_have_none_to_weigh(text):
    with pytest.raises(ScheduleError, match="none are weighed by"):
        RankRule.parse(text)


def test_weights_are_of_all_heads_and_of_mean_one():
    rule = RankRule.parse("last:9306")
    assert rule.head_weights().tolist() == pytest.approx([2.0, 2 / 3, 0.0, 4 / 3])
    check_heads([rule], 4)
    with pytest.raises(ScheduleError, match="has weights for 4 attention heads; the model has 8"):
        check_heads([rule], 8)
    check_heads([RankRule.parse("last"), RankRule.parse("cls")], 8)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("last@.9", "last@0.9"),
        ("instruction-norope-max@0.95+nearest", "instruction-norope-max@0.95+nearest"),
        ("last:90@0.0005", "last:90@0.0005"),
    ],
)
def test_a_share_of_the_attention_says_the_count(text, written):
    rule = RankRule.parse(text)
    assert rule.is_adaptive
    assert str(rule) == written
    assert RankRule.parse(written) == rule
    assert not RankRule.parse(text.partition("@")[0]).is_adaptive


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((f"last@{share}", "write a number above 0") for share in ["", "0", ".0", "1", "1.0"]),
        *(
            (f"last@{share}", "write a number above 0")
            for share in ["-.5", "1e-3", "nan", ".12345"]
        ),
        *((f"last@{share}", "write a number above 0") for share in [".5:90", ".5@.5", " .5"]),
        ("last-prior@.5", "what last ranks by is none"),
        ("self@.5", "is of one image"),
        *((f"{rule}@.5", "ranks by no such share") for rule in ["saliency", "cls", "previous"]),
    ],
)
def test_other_shares_are_refused(text, reason):
    with pytest.raises(ScheduleError, match=reason):
        RankRule.parse(text)
    with pytest.raises(ScheduleError, match="write a share above 0 and below 1"):
        Last(mass=1.5)


@pytest.mark.parametrize("text", ["last-prior", "cls-rows", "cls-spread"])
def test_scores_that_are_no_weights_weigh_nothing(text):
    assert str(RankRule.parse(f"{text}+nearest")) == f"{text}+nearest"
    with pytest.raises(ScheduleError, match=f"those of {text} are no weights"):
        RankRule.parse(f"{text}+scored")


@pytest.mark.parametrize("text", ["last-norope", "cls"])
def test_a_rule_crosses_processes(text):
    rule = RankRule.parse(text)
    assert pickle.loads(pickle.dumps(rule)) == rule


@pytest.mark.parametrize(
    "text",
    [
        *["", "Last", "last-", "last-max-norope", "last-norope-norope", "saliency-max", "-"],
        *["cls-norope", "previous-max", " last", "last\n", "x" * 10**5, "last" + "-" * 10**5],
        *["rules", "__init__", "os", "vtr_vllm.ranking"],
        *[None, 1, ["last"], b"last"],
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ScheduleError, match=r"is unknown; known are .*last\[-norope\]\[-max\]"):
        RankRule.parse(text)


def test_a_refusal_is_short():
    with pytest.raises(ScheduleError) as caught:
        RankRule.parse("x" * 10**5)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("values", [{"heads": "min"}, {"rope": 1}, {"rope": None}])
def test_other_values_are_refused(values):
    with pytest.raises(ScheduleError, match="rope is True or False, heads is 'mean' or 'max'"):
        Last(**values)


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(TypeError, match="two rank rules are named last"):
        type("Other", (RankRule,), {"name": "last"})


def test_what_a_rule_needs():
    needs = {name: {need.value for need in rule.needs} for name, rule in RULES.items()}
    blind = {name for name, rule in RULES.items() if not rule.sees_question}
    assert needs["last"] == needs["instruction"] == {"attention"}
    assert (needs["saliency"], needs["cls"], needs["random"]) == ({"embeddings"}, {"tower"}, set())
    assert RankRule.parse("last").needs_attention
    assert not RankRule.parse("previous").needs_attention
    assert RULES["previous"].needs == {Need.PREVIOUS}
    assert needs["grid"] == needs["prefix"] == set()
    assert needs["orthogonal"] == needs["diverse"] == {"states"}
    assert {"saliency", "cls", "random", "grid", "prefix", "orthogonal", "diverse"} <= blind
    assert not {"last", "instruction", "previous"} & blind
