"""JSON read and copied strictly: no NaN, no duplicate or unknown keys, no surprise types.

Everything here raises ScheduleError and nothing else, whatever the text holds.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from vtr_vllm.errors import ScheduleError, show

_ALLOWED = "null, booleans, finite numbers, strings, lists and objects with string keys"
JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
MAX_JSON_BYTES = 1 << 20  # 1 MiB: a 100-layer schedule takes a few KiB
T = TypeVar("T")


def read_object(text: str) -> dict[str, Any]:
    """Parse one JSON object of at most 1 MiB; raises ScheduleError with the reason."""
    if len(text) > MAX_JSON_BYTES or len(text.encode("utf-8", "replace")) > MAX_JSON_BYTES:
        raise ScheduleError(
            f"the JSON text is larger than {MAX_JSON_BYTES} bytes; move bulky provenance elsewhere"
        )
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except ScheduleError:
        raise
    except (ValueError, RecursionError) as err:
        # RecursionError: brackets nested thousands deep
        raise ScheduleError(
            f"not valid JSON ({type(err).__name__}: {err}); write the file again"
        ) from err
    if not isinstance(value, dict):
        raise ScheduleError(f"expected a JSON object at the top, got {show(value)}")
    return value


def load_file(path: str | os.PathLike[str], what: str, parse: Callable[[str], T]) -> T:
    """What ``parse`` makes of a file of at most 1 MiB; raises ScheduleError with the path and the reason."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ScheduleError(f"the file is larger than {MAX_JSON_BYTES} bytes")
        return parse(data.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise ScheduleError(
            f"{what} file {os.fspath(path)}: cannot read it ({err}); give the path of a readable"
            " UTF-8 file"
        ) from err
    except ScheduleError as err:
        raise ScheduleError(f"{what} file {os.fspath(path)}: {err}") from err


def check_version(values: Mapping[str, object], expected: int, next_step: str) -> None:
    """Refuse another ``schema_version``; one that is missing is for ``check_keys`` to say."""
    version = values.get("schema_version")
    if "schema_version" in values and (type(version) is not int or version != expected):
        raise ScheduleError(
            f"schema_version is {show(version)}, this release reads {expected}; {next_step}"
        )


def check_keys(
    mapping: Mapping[str, object],
    expected: Iterable[str],
    where: str,
    optional: Iterable[str] = (),
) -> None:
    """Refuse missing and unknown keys by name; raises ScheduleError."""
    wanted = set(expected)
    missing = sorted(wanted - mapping.keys())
    unknown = sorted(str(key) for key in mapping.keys() - wanted - set(optional))
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {show(unknown)}"] if unknown else []
        also = f", and optionally {', '.join(optional)}" if optional else ""
        raise ScheduleError(
            f"{where}: {' and '.join(parts)}; the keys are exactly {', '.join(sorted(wanted))}"
            f"{also}"
        )


def copy_object(value: object, where: str) -> dict[str, JSON]:
    """A deep copy of a mapping of plain JSON values; tuples become lists.

    Raises ScheduleError on a value that JSON cannot carry exactly, NaN included.
    """
    if not isinstance(value, Mapping):
        raise ScheduleError(f"{where} must be an object, got {show(value)}; use {{}} for none")
    try:
        return _copy_mapping(value, where)
    except RecursionError as err:
        raise ScheduleError(f"{where} is nested too deep; flatten it") from err


def _copy(value: object, where: str) -> JSON:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [_copy(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _copy_mapping(value, where)
    raise ScheduleError(f"{where} holds {show(value)}; allowed are {_ALLOWED}")


def _copy_mapping(value: Mapping[Any, object], where: str) -> dict[str, JSON]:
    for key in value:
        if not isinstance(key, str):
            raise ScheduleError(f"{where} has the key {show(key)}; keys must be strings")
    return {key: _copy(item, f"{where}.{key}") for key, item in value.items()}


def _refuse_constant(constant: str) -> NoReturn:
    raise ScheduleError(f"the JSON holds {constant}; every number must be finite")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ScheduleError(f"the JSON repeats the key {show(twice)}; keep one of each")
    return result
