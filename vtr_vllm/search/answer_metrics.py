"""Scores of one answer against the known ones: every metric returns a float in [0, 1]."""

import re
from collections.abc import Callable, Mapping, Sequence

from vtr_vllm.errors import CalibrationError

Metric = Callable[[str, Sequence[str]], float]
"""Prediction and answers to a score in [0, 1]."""


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 when the prediction is one of the answers, up to case, spaces and one final period.

    The exact match of SQuAD (arXiv 1606.05250) with nothing else forgiven: articles and
    punctuation count.
    """
    return float(_plain(prediction) in {_plain(answer) for answer in answers})


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 when an answer occurs in the prediction as whole words, up to case and spaces.

    The rule of OCRBench (arXiv 2305.07895), which also takes parts of words.
    """
    said = _spaced(prediction)
    return float(any(re.search(rf"(?<!\w){re.escape(_spaced(a))}(?!\w)", said) for a in answers))


def anls(prediction: str, answers: Sequence[str]) -> float:
    """The best normalised Levenshtein similarity to an answer, 0 where it is .5 or less.

    One item's part of ANLS (arXiv 1905.13648), up to case and spaces.
    """
    said = _spaced(prediction)
    return max(_similarity(said, _spaced(answer)) for answer in answers)


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other), 1)
    # the distance is at least the difference in length
    if 2 * abs(len(one) - len(other)) >= longest:
        return 0.0
    distance = levenshtein(one, other) / longest
    return 1.0 - distance if distance < 0.5 else 0.0


def levenshtein(one: str, other: str) -> int:
    """Insertions, deletions and substitutions of one character from ``one`` to ``other``."""
    above = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        current = [row]
        for column, target in enumerate(other, 1):
            substituted = above[column - 1] + (letter != target)
            current.append(min(substituted, above[column] + 1, current[-1] + 1))
        above = current
    return above[-1]


_FULL_VOTES = 3
_ANNOTATORS = 10


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy of VQA: in full when three annotators agree (arXiv 1505.00468).

    With 10 answers or more: min(1, matches / 3), averaged over the sets that leave one answer
    out. With n < 10: min(1, matches / min(3, n)), so that a single answer counts in full.
    Prediction and answers are both normalised by the rules of visualqa.org/evaluation.html.
    """
    said = normalise_vqa(prediction)
    matches = sum(normalise_vqa(answer) == said for answer in answers)
    count = len(answers)
    if count < _ANNOTATORS:
        return min(1.0, matches / min(_FULL_VOTES, count))
    with_a_match_out = min(1.0, max(0, matches - 1) / _FULL_VOTES)
    with_another_out = min(1.0, matches / _FULL_VOTES)
    return (matches * with_a_match_out + (count - matches) * with_another_out) / count


_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# Those that are no other word without their apostrophe, as "well" and "its" are.
_CONTRACTIONS = """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't
    needn't oughtn't shan't shouldn't wasn't weren't won't wouldn't
    could've might've must've should've would've they've we've who've you've
    he's how's she's somebody's someone's something's that's there's what's when's where's who's
    i'm they're you're they'll you'll who'll ma'am o'clock y'all
"""
_APOSTROPHES = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}
_PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")


def normalise_vqa(text: str) -> str:
    """An answer as VQA compares it, by the rules of visualqa.org/evaluation.html.

    Lower case; commas inside numbers and periods outside them removed, other punctuation made
    spaces; number words as digits; no articles; missing apostrophes added.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    text = re.sub(r"\.(?!\d)", "", text)
    words = (_DIGITS.get(word, word) for word in _PUNCTUATION.sub(" ", text).split())
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def option_letter(prediction: str, answers: Sequence[str]) -> float:
    """1 when the prediction names one option, and that is among the answers.

    The idea is that of VLMEvalKit's exact matching (arXiv 2407.11691), the rules are ours: see
    ``read_option``.
    """
    return float(read_option(prediction) in set(answers))


# Not the article or the pronoun: "A cat", "I think", but "A is right".
_NO_WORD = r"(?!\s+(?!(?:is|as|because|since|and|or)\b)[a-z])"
_LETTER = rf"([B-HJ-Z]|[AI]{_NO_WORD})(?![A-Za-z0-9'’-])"
_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_MARKED = re.compile(
    r"\(([A-Z])\)"
    r"|(?:^|(?<=\s))([A-Z])[.:)](?=\s+\S)"
    rf"|\b(?i:answer|option|choice)(?i:\s+is)?[\W_]*{_LETTER}"
)
_STANDING = re.compile(rf"(?<![A-Za-z0-9'’-]){_LETTER}")


def read_option(text: str) -> str | None:
    """The option letter that an answer names, None when it names none or several.

    In this order: the text is one letter, in either case; one letter is marked, as in ``(B)``,
    ``B. a cat`` or ``the answer is B``; one capital letter stands alone, the article A and the
    pronoun I not counted.
    """
    if alone := _ALONE.fullmatch(text):
        return alone[1].upper()
    for pattern in (_MARKED, _STANDING):
        letters = {next(filter(None, found.groups())) for found in pattern.finditer(text)}
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return None


METRICS: Mapping[str, Metric] = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
    "anls": anls,
    "option_letter": option_letter,
    "contains": contains,
}
"""The names that a calibration file may give."""


def check_metric(metric: str, answers: Sequence[str]) -> None:
    """Refuse an unknown metric, and answers that it cannot be taken against.

    Raises CalibrationError.
    """
    if metric not in METRICS:
        raise CalibrationError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
    if not answers or not all(answer.strip() for answer in answers):
        raise CalibrationError("answers must be one text or more, none of them blank")
    if metric == "option_letter" and not all(re.fullmatch("[A-Z]", a) for a in answers):
        raise CalibrationError(
            f"answers {list(answers)!r} of option_letter must each be one letter from A to Z"
        )


def score(metric: str, prediction: str, answers: Sequence[str]) -> float:
    """Score a prediction, in [0, 1]; an empty one scores 0 whatever the metric.

    Raises CalibrationError as ``check_metric``.
    """
    check_metric(metric, answers)
    return METRICS[metric](prediction, answers) if prediction.strip() else 0.0


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


def _plain(text: str) -> str:
    return _spaced(text).removesuffix(".").rstrip()
