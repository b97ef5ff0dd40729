"""What the stage ``right`` asks."""

from __future__ import annotations

from benchmarks.gpu_check.right import WAYS, asked, is_full


def test_every_question_is_another_and_every_schedule_is_asked_alike() -> None:
    found = asked([None, "full", "fastv-0.25"], 4)
    assert len({question for question, _ in found}) == len(found) == 12
    assert [sum(name == each for _, name in found) for each in (None, "full", "fastv-0.25")] == [
        4
    ] * 3
    assert [is_full(name) for _, name in found[:3]] == [True, True, False]


def test_what_a_way_is_compared_with_is_there() -> None:
    names = [way.name for way in WAYS]
    assert len(set(names)) == len(names)
    assert all(way.like in names for way in WAYS if way.like)
