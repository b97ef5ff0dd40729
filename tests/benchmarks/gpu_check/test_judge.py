"""Whether two runs count as the same."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu_check.judge import agreement, lead_lost


def answer(tokens: list[int], margins: list[float]) -> dict[str, object]:
    return {"tokens": tokens, "margins": margins}


def test_only_the_first_difference_of_an_answer_counts() -> None:
    first = [answer([1, 2, 3], [5.0, 0.02, 9.0]), answer([4], [1.0])]
    second = [answer([1, 7, 8], [0.0, 0.0, 0.0]), answer([4], [0.5])]
    found = agreement(first, second)
    assert (found.equal, found.total, found.worst) == (1, 2, 0.02)
    assert found.within(0.05)
    assert not found.within(0.01)


def test_equal_answers_are_within_any_tolerance() -> None:
    same = [answer([1, 2], [1.0, 1.0])]
    assert agreement(same, same).within(0.0)


def test_as_many_answers_on_both_sides() -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        agreement([answer([1], [1.0])], [])


def test_what_the_reference_would_rather_have_said() -> None:
    reference = torch.tensor([[0.0, -1.0], [-3.0, 0.0]])
    assert lead_lost(reference, [0, 1]) == 0.0
    assert lead_lost(reference, [1, 1]) == 1.0
    assert lead_lost(reference, [1, 0]) == 3.0
