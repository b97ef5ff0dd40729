"""One line of a calibration file: which keys it has, and what may stand under them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from vtr_vllm.errors import CalibrationError, show
from vtr_vllm.search.answer_metrics import check_metric

__all__ = ["check_line", "read_line"]

REQUIRED = ("image", "question")
"""Without an image where an earlier turn brings one."""
ANSWERED = ("answers", "metric")
"""Both or neither, and alike in all lines of a file: a search without them is ``label-free``."""
OPTIONAL = ("id", "kind", "history")
EARLIER = ("question", "answer")
"""Of each turn in ``history``; its ``image`` is optional."""


def check_line(values: Mapping[str, Any]) -> None:
    """Raise CalibrationError for keys or values that no line may have; images are not opened."""
    history = values.get("history", [])
    _check_history(history)
    required = [key for key in REQUIRED if key != "image" or not _bring_image(history)]
    if any(key in values for key in ANSWERED):
        required += ANSWERED
    _check_keys(values, required, (*REQUIRED, *ANSWERED, *OPTIONAL))
    _check_texts(values, values.keys() - {"answers", "history"})
    if "answers" not in values:
        return
    answers = values["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise CalibrationError(f"answers must be a list of texts, got {show(answers)}")
    check_metric(values["metric"], answers)


def _bring_image(history: Iterable[Mapping[str, Any]]) -> bool:
    return any("image" in turn for turn in history)


def _check_history(history: object) -> None:
    if not isinstance(history, list) or not all(isinstance(turn, dict) for turn in history):
        raise CalibrationError(f"history must be a list of objects, got {show(history)}")
    for number, turn in enumerate(history, 1):
        try:
            _check_keys(turn, EARLIER, ("image",))
            _check_texts(turn, turn.keys())
        except CalibrationError as err:
            raise CalibrationError(f"turn {number} of history: {err}") from err


def _check_keys(
    values: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]
) -> None:
    missing = [key for key in required if key not in values]
    unknown = sorted(values.keys() - {*required, *optional})
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {show(unknown)}"] if unknown else []
        known = ", ".join(key for key in optional if key not in required)
        raise CalibrationError(
            f"{' and '.join(parts)}; required are {', '.join(required)}, optional {known}"
        )


def _check_texts(values: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        if not isinstance(values[key], str) or not values[key].strip():
            raise CalibrationError(f"{key} must be a text, not blank, got {show(values[key])}")


def read_line(line: bytes) -> dict[str, Any]:
    """The object of a line; raises CalibrationError."""
    try:
        value = json.loads(
            line.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
        json.dumps(value, ensure_ascii=False).encode()  # an escaped half of a surrogate pair
    except (ValueError, RecursionError) as err:
        raise CalibrationError(f"not valid JSON ({type(err).__name__}: {err})") from err
    if not isinstance(value, dict):
        raise CalibrationError(f"expected a JSON object, got {show(value)}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise CalibrationError("a key is given twice; keep one of each")
    return dict(pairs)


def _refuse_constant(constant: str) -> NoReturn:
    raise CalibrationError(f"{constant} is no JSON number")
