"""From an answer to numbers: metric, log-probability of the reference, divergence, utility."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vtr_vllm.search.answer_metrics import score
from vtr_vllm.search.answers import Answer, GeneratedToken
from vtr_vllm.search.calibration import Item
from vtr_vllm.search_options import Objective

LEAST_LOGPROB = -10.0
"""Log-probabilities below it count as it: one hopeless item must not outweigh all others."""

LOGPROB_WEIGHT = 0.01
"""One nat of log-probability is worth one point of accuracy: fine enough to order candidates of
nearly equal accuracy, and it does not turn the order of clearly different ones."""


MEANING = "2"
"""Of the numbers of an outcome; another one where they are computed otherwise, so that no search that goes on
compares with what an earlier release found."""


@dataclass(frozen=True)
class Outcome:
    """What one item says about one candidate."""

    score: float
    """The item's metric, in [0, 1]; without right answers whether this is the unreduced one."""
    logprob: float
    """See ``reference_logprob``; in [LEAST_LOGPROB, 0]. Without right answers of the unreduced one."""
    divergence: float
    """See ``divergence``; in [0, ln 2] nats."""

    def utility(self, objective: Objective) -> float:
        """What the search maximises the mean of; at most ``best_utility``."""
        if objective == "label-free":
            return -self.divergence
        return self.score + LOGPROB_WEIGHT * self.logprob


def best_utility(objective: Objective) -> float:
    """No item's utility is above it, so that hopeless candidates can be told early."""
    return 0.0 if objective == "label-free" else 1.0


def utility_range(objective: Objective) -> float:
    """From the worst utility of an item to the best."""
    worst = Outcome(0.0, LEAST_LOGPROB, math.log(2))
    return best_utility(objective) - worst.utility(objective)


def outcome(item: Item, answer: Answer, unreduced: Sequence[GeneratedToken]) -> Outcome:
    """Judge an answer; ``unreduced`` are the steps of the unreduced model's answer.

    Where the right answers are not known, the unreduced model's takes their place: the score is 1
    when the two are the same, token for token.
    """
    if item.metric is None:
        scored = float([s.token for s in answer.steps] == [s.token for s in unreduced])
        reference = "".join(step.token for step in unreduced)
    else:
        scored = score(item.metric, answer.text, item.answers)
        reference = item.answers[0]
    return Outcome(
        score=scored,
        logprob=reference_logprob(answer.steps, reference),
        divergence=divergence(unreduced, answer.steps),
    )


def reference_logprob(steps: Sequence[GeneratedToken], reference: str) -> float:
    """Mean log-probability of the reference answer's tokens, as far as one answer shows them.

    That is up to and with the first token at which the model's own greedy answer leaves the
    reference. A token that is not among those listed counts as the least listed one, which
    bounds it from above. Upper and lower case are taken as equal. A blank token is part of the
    spelling where more follows: some tokenizers write the space before a number on its own.
    """
    rest = reference.strip().casefold()
    seen: list[float] = []
    for place, step in enumerate(steps, 1):
        if not _plain(step.token) and place < len(steps):
            seen.append(step.logprobs[step.token])
            continue
        spelled = [
            (token == step.token, len(text), logprob)
            for token, logprob in step.logprobs.items()
            if (text := _plain(token)) and rest.startswith(text)
        ]
        if not spelled:
            seen.append(min(step.logprobs.values()))
            break
        said, length, logprob = max(spelled)
        seen.append(logprob)
        rest = rest[length:].lstrip()
        if not rest or not said:
            break
    if not seen:
        return LEAST_LOGPROB
    return max(LEAST_LOGPROB, min(0.0, math.fsum(seen) / len(seen)))


def divergence(first: Sequence[GeneratedToken], second: Sequence[GeneratedToken]) -> float:
    """Mean Jensen-Shannon divergence of the next-token distributions, in [0, ln 2] nats.

    Over the answer's positions up to and with the first at which the two answers differ. Only
    the likeliest tokens of a distribution are known, so this is a bound from below: see
    ``_jensen_shannon``.
    """
    values = []
    for one, other in zip(first, second, strict=False):
        values.append(_jensen_shannon(one.logprobs, other.logprobs))
        if one.token != other.token:
            break
    return math.fsum(values) / len(values) if values else 0.0


def _jensen_shannon(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """The greater of two bounds from below; each is the sum over tokens that both list, and more.

    One takes all other tokens together. The other compares each with the most that it can have where it
    is not listed: no more than the least listed token, and than what is left of 1. A token's share of
    the divergence is never below 0 and grows with the difference, so each sum is a bound.
    """
    p, q = ({token: math.exp(logprob) for token, logprob in d.items()} for d in (first, second))
    shared = sorted(p.keys() & q.keys())
    both = math.fsum(_term(p[token], q[token]) for token in shared)
    rest = _term(*(1.0 - math.fsum(each[token] for token in shared) for each in (p, q)))
    apart = math.fsum(
        _term(one[token], min(one[token], _most_unlisted(other)))
        for one, other in ((p, q), (q, p))
        for token in one
        if token not in other
    )
    return min(math.log(2), both + max(rest, apart))


def _most_unlisted(listed: Mapping[str, float]) -> float:
    """The most probability that a token can have which is not among the likeliest."""
    return max(0.0, min(1.0 - math.fsum(listed.values()), min(listed.values(), default=1.0)))


def _term(p: float, q: float) -> float:
    """One token's share of the divergence, in nats; 0 where the probabilities are equal, never less."""
    p, q = max(0.0, p), max(0.0, q)
    return max(0.0, (_half(p, q) + _half(q, p)) / 2)


def _half(a: float, b: float) -> float:
    return a * math.log(2 * a / (a + b)) if a > 0 else 0.0


def _plain(token: str) -> str:
    """Token text without the space that stands before it, in any tokenizer's spelling."""
    return token.lstrip(" \n\u2581\u0120\u010a").casefold()
