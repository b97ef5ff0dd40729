"""LLaVA-style JSON as people have it: one entry, its picture and the question about it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtr_vllm.errors import CalibrationError
from vtr_vllm.search.conversion import Row, checked

__all__ = ["find_image", "read_entries", "read_row", "read_turns"]

_IMAGE = "<image>"  # where the texts have the picture


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list; raises CalibrationError for anything else."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except (OSError, ValueError, RecursionError) as err:
        raise CalibrationError(
            f"{path} cannot be read as JSON ({err}); it must hold one JSON list, in UTF-8"
        ) from err
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CalibrationError(f"{path} must hold a JSON list of objects, as LLaVA's files do")
    return entries


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key is given twice among {', '.join(sorted(found))}; keep one of each")
    return found


def find_image(entry: Mapping[str, Any], root: Path) -> Path:
    """The file of an entry's one image, which may stand in a list; raises CalibrationError."""
    image = entry.get("image")
    if isinstance(image, list):
        if len(image) > 1:
            raise CalibrationError("several images")
        image = image[0] if image else None
    if not image:
        raise CalibrationError("no image")
    if not isinstance(image, str):
        raise CalibrationError("an image that is no path")
    try:
        if (root / image).is_file():
            return (root / image).resolve()
    except (OSError, ValueError):  # such as a name that is too long
        pass
    raise CalibrationError(f"no such image file under {root}")


def read_row(entry: Mapping[str, Any], metric: str) -> Row:
    """Question and answer about the picture, what a system turn says before it."""
    system, pairs, about = _read_pairs(entry)
    asked, answer = pairs[about]
    return checked(_question(asked, system), [answer], metric)


def read_turns(entry: Mapping[str, Any], image: str, metric: str) -> list[Row]:
    """Every question from the picture on, with what was said before; ``kind`` says which turn it is.

    What a system turn says stands before the first question.
    """
    system, pairs, about = _read_pairs(entry)
    rows: list[Row] = []
    history: list[Row] = []
    for number, (asked, answer) in enumerate(pairs):
        turn: Row = {"image": image} if number == about else {}
        turn["question"] = _question(asked, None if number else system)
        if number >= about:
            row = turn | checked(turn["question"], [answer], metric)
            row["kind"] = f"turn {number + 1}"
            rows.append(row | {"history": list(history)} if history else row)
        history.append(turn | {"answer": answer})
    return rows


def _read_pairs(entry: Mapping[str, Any]) -> tuple[str | None, list[tuple[str, str]], int]:
    """What a system turn says, what was asked and answered, and which question is about the picture.

    A question that got no answer is none of them.
    """
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise CalibrationError("no question of a human with an answer")
    asked = [
        (text, _said(reply, "gpt"))
        for turn, reply in zip(turns, [*turns[1:], None], strict=True)
        if (text := _said(turn, "human")) is not None
    ]
    if sum(text.count(_IMAGE) for text, _ in asked) > 1:
        raise CalibrationError("several images")
    # without a mark the picture belongs to the first question
    first = next((number for number, (text, _) in enumerate(asked) if _IMAGE in text), 0)
    if first >= len(asked) or asked[first][1] is None:
        raise CalibrationError("no question of a human with an answer")
    pairs = [(text, answer.strip()) for text, answer in asked if answer is not None]
    about = sum(answer is not None for _, answer in asked[:first])
    return _said(turns[0], "system"), pairs, about


def _question(asked: str, system: str | None) -> str:
    question = _without_mark(asked)
    if not question:
        raise CalibrationError("no question")
    if system is not None and system.strip():
        question = f"{system.strip()}\n{question}"
    return question


def _said(turn: object, who: str) -> str | None:
    """The text of a turn, None where it is another's or has none."""
    match turn:
        case {"from": speaker, "value": str(text)} if speaker == who:
            return text
    return None


def _without_mark(text: str) -> str:
    """A question without ``<image>``, in the words of one who sees the picture.

    A mark that stands beside the text goes; one inside a sentence becomes "the image".
    """
    before, _, after = text.partition(_IMAGE)
    ahead = before.rstrip(" \t")
    apart = not ahead or (ahead[-1] in "\n.:?!" and not after.strip()) or ahead.endswith("\n")
    return (before + ("" if apart else "the image") + after).strip()
