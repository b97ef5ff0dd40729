"""One batch of requests with mixed budgets, for every mode."""

from __future__ import annotations

from collections.abc import Sequence

from tests.vtr_vllm.engine.support import Case, picture, words

QUARTER = (1.0, 1.0, 0.25, 0.25, 0.125, 0.125, 0.0, 0.0)
HALF = (0.5,) * 8
STEPS = (1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25)
TOKENS = 12
"""That each request is answered with."""

ATTENTION = ("last", "last-max", "last-norope", "instruction", "instruction-max", "last:9032")
BLIND = ("saliency", "cls", "random")


def full() -> list[Case]:
    """Requests at budget 1.0, and text alone: what stock vLLM runs too."""
    return [
        Case(f"{words(5, 12)}<image>{words(6, 9)}", (picture(3),)),
        Case(f"<image>{words(7, 5)}<image>{words(8, 9)}", (picture(4), picture(5))),
        Case(words(7, 60)),
    ]


def reduced(attention: Sequence[str] = ATTENTION, blind: Sequence[str] = BLIND) -> list[Case]:
    """One request a rank rule, a text longer than a small step, cuts that rank once, and adaptive ones."""
    cases = [
        Case(f"{words(i, 30)}<image>{words(i + 9, 12)}", (picture(i),), QUARTER, (rule,) * 3)
        for i, rule in enumerate(attention)
    ]
    for i, rule in enumerate(blind):
        text = f"{words(i, 20)}<image>{words(i + 9, 12)}<image>{words(50 + i, 7)}"
        cases.append(Case(text, (picture(10 + i), picture(20 + i)), HALF, (rule,)))
    text = f"{words(3, 300)}<image>{words(4, 9)}"
    cases.append(Case(text, (picture(3),), STEPS, (attention[0], "previous")))
    share = f"{attention[0]}@0.6"
    return [*cases, Case(f"<image>{words(60, 12)}", (picture(6),), STEPS, (share, share))]


def mixed() -> list[Case]:
    """All of them in one batch."""
    return [*reduced(), *full()]
