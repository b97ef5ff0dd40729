import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_vllm.errors import CalibrationError
from vtr_vllm.search.answer_metrics import (
    METRICS,
    check_metric,
    levenshtein,
    normalise_vqa,
    read_option,
    score,
)

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)


@pytest.mark.parametrize("metric", METRICS)
@given(prediction=WORDS, answers=st.lists(WORDS.filter(str.strip), min_size=1, max_size=12))
def test_every_score_is_a_share(metric, prediction, answers):
    if metric == "option_letter":
        answers = ["B"]
    assert 0.0 <= score(metric, prediction, answers) <= 1.0


@pytest.mark.parametrize("metric", METRICS)
def test_the_only_answer_scores_in_full_and_silence_not_at_all(metric):
    assert score(metric, "B", ["B"]) == 1.0
    assert score(metric, "b", ["B"]) == 1.0
    assert score(metric, "", ["B"]) == 0.0
    assert score(metric, " \n", ["B"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("Red", 1), (" red. ", 1), ("dark  blue", 1), ("a red", 0), ("redder", 0), ("red, blue", 0)],
)
def test_exact_match_forgives_case_spaces_and_a_period(prediction, expected):
    assert score("exact_match", prediction, ["red", "Dark Blue."]) == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("It is a red car.", 1),
        ("RED CAR", 1),
        ("a red  car", 1),
        ("a redcar", 0),
        ("a tired carpet", 0),
        ("red", 0),
        ("it costs 3.50 (dollars)", 1),
    ],
)
def test_contains_wants_whole_words(prediction, expected):
    assert score("contains", prediction, ["red car", "3.50"]) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("kitten", ["kitten"], 1.0),
        ("Kitten ", ["kitten"], 1.0),
        ("sitting", ["kitten"], 1 - 3 / 7),
        ("abcd", ["abxy"], 0.0),  # a distance of exactly half is too far
        ("sitting", ["dog", "sittings", "kitten"], 1 - 1 / 8),
        ("x" * 100_000, ["short"], 0.0),
    ],
)
def test_anls(prediction, answers, expected):
    assert score("anls", prediction, answers) == pytest.approx(expected)


@given(WORDS, WORDS, WORDS)
def test_levenshtein_is_a_distance(one, two, three):
    there = levenshtein(one, two)
    assert there == levenshtein(two, one)
    assert (there == 0) == (one == two)
    assert abs(len(one) - len(two)) <= there <= max(len(one), len(two))
    assert levenshtein(one, three) <= there + levenshtein(two, three)


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_vqa_accuracy_of_ten_annotators(matches, expected):
    answers = ["yes"] * matches + [f"no {n}" for n in range(10 - matches)]
    assert score("vqa_accuracy", "Yes.", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["yes"], 1),
        (["yes", "no"], 1 / 2),
        (["yes", "no", "no"], 1 / 3),
        (["yes", "no", "no", "no"], 1 / 3),
        (["yes", "yes", "yes", "no", "no"], 1),
    ],
)
def test_vqa_accuracy_of_fewer(answers, expected):
    assert score("vqa_accuracy", "yes", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Red Car", "red car"),
        ("two dogs, three cats", "2 dogs 3 cats"),
        ("None", "0"),
        ("100,978", "100978"),
        ("2.5 m.", "2.5 m"),
        ("dont know", "don't know"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("black/white\n(striped)", "black white striped"),
        ("ice-cream!", "ice cream"),
    ],
)
def test_vqa_normalisation(text, expected):
    assert normalise_vqa(text) == expected


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (b). ", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("(B) a cat", "B"),
        ("B. Vitamin C.", "B"),
        ("B: the cat", "B"),
        ("The answer is B", "B"),
        ("The answer is B.", "B"),
        ("the correct answer is: **(B)**", "B"),
        ("Answer: A", "A"),
        ("The answer is A because it is red", "A"),
        ("A is correct", "A"),
        ("I think that it is option D", "D"),
        ("The answer is I.", "I"),
        ("Of all of them, B fits", "B"),
        ("A cat", None),
        ("Answer: A cat", None),
        ("I see nothing", None),
        ("It's an X-ray", None),
        ("", None),
        ("no idea", None),
        ("A or B", None),
        ("A, B", None),
        ("(A) or (B)", None),
        ("A. cat\nB. dog", None),
        ("A. cat B. dog", None),
        ("The answer is B, not (C)", None),
    ],
)
def test_option_letter_is_read_or_ambiguous(text, letter):
    assert read_option(text) == letter


def test_an_option_is_scored_against_the_letter():
    assert score("option_letter", "The answer is (C).", ["C"]) == 1.0
    assert score("option_letter", "The answer is (C).", ["B"]) == 0.0
    assert score("option_letter", "B or C", ["B"]) == 0.0


@pytest.mark.parametrize(
    ("metric", "answers", "reason"),
    [
        ("bleu", ["a"], "unknown metric 'bleu'; there are exact_match, vqa_accuracy"),
        ("contains", [], "one text or more"),
        ("contains", ["red", " "], "none of them blank"),
        ("option_letter", ["b"], "one letter from A to Z"),
        ("option_letter", ["AB"], "one letter from A to Z"),
        ("option_letter", ["B", "a cat"], "one letter from A to Z"),
    ],
)
def test_what_a_metric_cannot_use_is_refused(metric, answers, reason):
    with pytest.raises(CalibrationError, match=reason):
        check_metric(metric, answers)
    with pytest.raises(CalibrationError, match=reason):
        score(metric, "B", answers)
