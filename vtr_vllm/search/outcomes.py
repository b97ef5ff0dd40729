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
    the likeliest tokens of a distribution are known: tokens that both list are compared one by
    one, all others together, which bounds the divergence from below.
    """
    values = []
    for one, other in zip(first, second, strict=False):
        values.append(_jensen_shannon(one.logprobs, other.logprobs))
        if one.token != other.token:
            break
    return math.fsum(values) / len(values) if values else 0.0


def _jensen_shannon(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    shared = sorted(first.keys() & second.keys())
    p = [math.exp(first[token]) for token in shared]
    q = [math.exp(second[token]) for token in shared]
    p.append(max(0.0, 1.0 - math.fsum(p)))
    q.append(max(0.0, 1.0 - math.fsum(q)))
    total = math.fsum(_half(a, b) + _half(b, a) for a, b in zip(p, q, strict=True))
    return min(math.log(2), max(0.0, total / 2))


def _half(a: float, b: float) -> float:
    return a * math.log(2 * a / (a + b)) if a > 0 else 0.0


def _plain(token: str) -> str:
    """Token text without the space that stands before it, in any tokenizer's spelling."""
    return token.lstrip(" \n\u2581\u0120\u010a").casefold()
