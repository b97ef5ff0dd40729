"""From an answer to numbers."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items
from vtr_vllm.schedules import RankRule
from vtr_vllm.search.answers import Answer, GeneratedToken, Task
from vtr_vllm.search.candidates import Candidate, unreduced
from vtr_vllm.search.outcomes import (
    LEAST_LOGPROB,
    LOGPROB_WEIGHT,
    Outcome,
    best_utility,
    divergence,
    outcome,
    reference_logprob,
)


def steps(*listed: Mapping[str, float]) -> list[GeneratedToken]:
    """Greedy steps with these probabilities; the likeliest token is the one said."""
    return [
        GeneratedToken(
            max(tokens, key=lambda t: tokens[t]), {t: math.log(p) for t, p in tokens.items()}
        )
        for tokens in listed
    ]


END = {"</s>": 0.9, " the": 0.01}


@st.composite
def answers(draw: st.DrawFn) -> list[GeneratedToken]:
    """Any answer of few tokens, whose likeliest one is said, over few texts so that they meet."""
    texts = ["red", "re", "d", " red", "▁Red", "Ġ", "", " ", "\n", "blue", "</s>"]
    found = []
    for _ in range(draw(st.integers(0, 4))):
        tokens = draw(st.lists(st.sampled_from(texts), min_size=1, max_size=6, unique=True))
        weights = draw(
            st.lists(st.floats(1e-9, 1.0), min_size=len(tokens) + 1, max_size=len(tokens) + 1)
        )
        total = sum(weights)  # the last weight is what no listed token has
        listed = {t: w / total for t, w in zip(tokens, weights, strict=False)}
        found += steps(listed)
    return found


def test_one_token_counts_as_it_is() -> None:
    assert reference_logprob(steps({"red": 0.7, "blue": 0.2}, END), "red") == pytest.approx(
        math.log(0.7)
    )


def test_several_tokens_count_as_their_mean() -> None:
    said = steps({"dark": 0.9, "red": 0.05}, {" blue": 0.5, " red": 0.3}, END)
    assert reference_logprob(said, "dark blue") == pytest.approx(
        (math.log(0.9) + math.log(0.5)) / 2
    )


def test_a_word_in_pieces_is_put_together() -> None:
    said = steps({"tur": 0.9, "tea": 0.05}, {"quoise": 0.6, "key": 0.4}, END)
    assert reference_logprob(said, "Turquoise") == pytest.approx(
        (math.log(0.9) + math.log(0.6)) / 2
    )


@pytest.mark.parametrize("space", [" ", "\n", "▁", "Ġ", "Ċ", " \n"])
def test_the_space_before_a_token_is_no_part_of_it(space: str) -> None:
    said = steps({f"{space}red": 0.7, "blue": 0.2}, END)
    assert reference_logprob(said, "red") == pytest.approx(math.log(0.7))


@pytest.mark.parametrize("blank", ["▁", " ", "Ġ", "\n"])
def test_a_space_as_a_token_of_its_own_is_read_over(blank: str) -> None:
    """As Llama's tokenizer writes a number: the space, then each digit."""
    said = steps({blank: 0.8, "no": 0.1}, {"4": 0.9, "5": 0.05}, {"2": 0.5, "1": 0.4}, END)
    spelled = (math.log(0.8) + math.log(0.9) + math.log(0.5)) / 3
    assert reference_logprob(said, "42") == pytest.approx(spelled)


def test_a_blank_answer_spells_nothing() -> None:
    assert reference_logprob(steps({"": 0.99, "red": 1e-3}), "red") == pytest.approx(math.log(1e-3))
    assert reference_logprob(steps({" ": 0.99, "blue": 1e-3}), "red") == pytest.approx(
        math.log(1e-3)
    )


def test_a_wrong_answer_shows_the_reference_as_far_as_it_goes_along() -> None:
    said = steps({"dark": 0.9, "red": 0.05}, {" green": 0.5, " blue": 0.25}, {" blue": 0.9})
    assert reference_logprob(said, "dark blue") == pytest.approx(
        (math.log(0.9) + math.log(0.25)) / 2
    )


def test_an_unlisted_token_counts_as_the_least_listed() -> None:
    said = steps({"red": 0.9, "green": 0.04, "pink": 0.02}, END)
    assert reference_logprob(said, "blue") == pytest.approx(math.log(0.02))


def test_what_was_said_comes_before_another_spelling() -> None:
    """Both spell the reference, but only one answer was given, and it spells it to the end."""
    said = steps({"4": 0.9, "42": 1e-6}, {"2": 0.9, "1": 0.05}, END)
    assert reference_logprob(said, "42") == pytest.approx(math.log(0.9))


def test_of_several_spellings_not_said_the_longest_counts() -> None:
    said = steps({"red": 0.9, "b": 0.05, "blue": 0.01}, END)
    assert reference_logprob(said, "blue") == pytest.approx(math.log(0.01))


def test_case_does_not_count() -> None:
    said = steps({"RED": 0.6, "Blue": 0.3}, END)
    assert reference_logprob(said, " Red ") == pytest.approx(math.log(0.6))


def test_what_follows_the_reference_does_not_count() -> None:
    said = steps({"red": 0.6, "blue": 0.3}, {" roses": 0.01, " is": 0.001})
    assert reference_logprob(said, "red") == pytest.approx(math.log(0.6))


def test_no_token_at_all_is_the_least() -> None:
    assert reference_logprob([], "red") == LEAST_LOGPROB


def test_a_hopeless_item_is_bounded() -> None:
    assert reference_logprob(steps({"blue": 1.0, "red": 1e-30}), "red") == LEAST_LOGPROB


@given(answers(), st.sampled_from(["red", "Red", "red red", "blue", "bluered", "none"]))
def test_a_log_probability_is_bounded(said: list[GeneratedToken], reference: str) -> None:
    assert LEAST_LOGPROB <= reference_logprob(said, reference) <= 0


@given(answers(), answers())
def test_divergence_is_bounded_and_symmetric(
    one: list[GeneratedToken], other: list[GeneratedToken]
) -> None:
    assert 0 <= divergence(one, other) <= math.log(2)
    assert divergence(one, other) == divergence(other, one)


@given(answers())
def test_an_answer_does_not_diverge_from_itself(said: list[GeneratedToken]) -> None:
    assert divergence(said, said) == 0


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_divergence_is_jensen_and_shannons(p: float, q: float) -> None:
    """Of two distributions over two tokens, both listed in full."""
    one, other = steps({"a": p, "b": 1 - p}), steps({"a": q, "b": 1 - q})
    m = (p + q) / 2

    def entropy(x: float) -> float:
        return -x * math.log(x) - (1 - x) * math.log(1 - x)

    expected = entropy(m) - (entropy(p) + entropy(q)) / 2
    assert divergence(one, other) == pytest.approx(expected, abs=1e-9)


def exact(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """Jensen and Shannon's divergence of two distributions that are known in full."""
    total = 0.0
    for token in p.keys() | q.keys():
        a, b = p.get(token, 0.0), q.get(token, 0.0)
        total += sum(x * math.log(2 * x / (a + b)) for x in (a, b) if x > 0) / 2
    return total


VOCABULARY = [f"t{i}" for i in range(12)]
distributions = st.lists(
    st.floats(1e-6, 1.0), min_size=len(VOCABULARY), max_size=len(VOCABULARY)
).map(lambda shares: {t: share / sum(shares) for t, share in zip(VOCABULARY, shares, strict=True)})


@given(distributions, distributions, st.integers(1, 12))
def test_what_the_likeliest_tokens_show_bounds_the_divergence_from_below(
    p: dict[str, float], q: dict[str, float], listed: int
) -> None:
    def top(of: dict[str, float]) -> dict[str, float]:
        return dict(sorted(of.items(), key=lambda pair: -pair[1])[:listed])

    found = divergence(steps(top(p)), steps(top(q)))
    assert found <= exact(p, q) + 1e-9
    if listed == len(VOCABULARY):
        assert found == pytest.approx(exact(p, q), abs=1e-9)


def test_an_answer_that_neither_side_expected_of_the_other_diverges() -> None:
    """Whether the old answer is still listed: all that is left of it is less than the least listed."""
    before = {"Kellogg": 0.95, "the": 0.01, "a": 0.005}
    after = {"Nestle": 0.95, "the": 0.012, "a": 0.006}
    listed = {**after, "Kellogg": 0.004}
    assert divergence(steps(before), steps(after)) > 0.5
    assert divergence(steps(before), steps(listed)) == pytest.approx(
        divergence(steps(before), steps(after)), abs=0.03
    )
    assert divergence(steps({"a": 0.9}), steps({"b": 0.9})) == pytest.approx(
        exact({"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.9}), abs=1e-9
    )


def test_divergence_stops_where_the_answers_part() -> None:
    same, off = {"a": 0.6, "b": 0.4}, {"a": 0.4, "b": 0.6}
    far = {"a": 1.0, "b": 1e-9}
    first = divergence(steps(same), steps(off))
    assert divergence(steps(same, far), steps(off, off)) == first
    both = divergence(steps(same, same), steps(same, off))
    assert both == pytest.approx(first / 2)
    assert divergence([], steps(same)) == 0


def test_utilities_are_at_most_the_best() -> None:
    perfect, worst = Outcome(1.0, 0.0, 0.0), Outcome(0.0, LEAST_LOGPROB, math.log(2))
    assert perfect.utility("accuracy") == best_utility("accuracy") == 1.0
    assert perfect.utility("label-free") == best_utility("label-free") == 0.0
    assert worst.utility("accuracy") == LOGPROB_WEIGHT * LEAST_LOGPROB
    assert worst.utility("label-free") == -math.log(2)


def test_an_outcome_is_the_three_of_them(tmp_path) -> None:
    evaluator = SimulatedEvaluator()
    cut = Candidate.from_counts((16, 16, 2, 2, 2), [RankRule.parse("last")] * 5, 16)
    met = set()
    for item in items(tmp_path, 30).items:
        whole = evaluator.answer(Task(unreduced(evaluator.geometry), item))
        answer = evaluator.answer(Task(cut, item))
        found = outcome(item, answer, whole.steps)
        assert found.score == float(answer.text == item.answers[0])
        assert found.logprob == reference_logprob(answer.steps, item.answers[0])
        assert found.divergence == divergence(whole.steps, answer.steps)
        met.add(found.score)
    assert met == {0.0, 1.0}


def test_an_empty_answer_scores_nothing(tmp_path) -> None:
    (item,) = items(tmp_path, 1).items
    assert outcome(item, Answer("", (), 16, 5), steps(END)) == Outcome(0.0, LEAST_LOGPROB, 0.0)


def test_without_right_answers_the_unreduced_one_takes_their_place(tmp_path) -> None:
    evaluator = SimulatedEvaluator()
    cut = Candidate.from_counts((16, 16, 2, 2, 2), [RankRule.parse("last")] * 5, 16)
    met = set()
    for item in items(tmp_path, 30, answered=False).items:
        whole = evaluator.answer(Task(unreduced(evaluator.geometry), item))
        assert outcome(item, whole, whole.steps).score == 1.0
        answer = evaluator.answer(Task(cut, item))
        found = outcome(item, answer, whole.steps)
        assert found.score == float(answer.text == whole.text)
        assert found.logprob <= outcome(item, whole, whole.steps).logprob
        assert found.divergence == divergence(whole.steps, answer.steps)
        met.add(found.score)
    assert met == {0.0, 1.0}
