"""The two JSON files that a report is made from: what they must hold, and how they are read."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtr_vllm.errors import ConfigurationError, show

# A form is a type, [form of every item], {key: form}, or one of the two classes below.
Form = Any

LARGEST = 1e300  # keeps infinities, NaN and whole numbers beyond a float out of the figures


@dataclass(frozen=True)
class Maybe:
    """A value that may be null or absent."""

    form: Form


@dataclass(frozen=True)
class Each:
    """An object with free keys, all values of one form."""

    form: Form


_DATA = {"path": str, "sha256": str, "n": int, "answered": Maybe(bool)}
_BETWEEN = {"low": float, "high": float}

SEARCH: Form = {
    "meta": {
        "model": str,
        "fingerprint": str,
        "n_vision": int,
        "data": _DATA,
        "family": Maybe(str),
        "seed": int,
        "objective": str,
        "tolerance": float,
        "versions": Each(str),
        "command": str,
        "date": str,
        "unreduced": {"value": float, "accuracy": float, **_BETWEEN},
        "finished": Maybe(bool),
    },
    "g_search": [
        {
            "name": str,
            "steps": [
                {
                    "layer": int,
                    "count": int,
                    "keep": float,
                    "accuracy": float,
                    "value": float,
                    "mean_keep": float,
                    "evaluations": int,
                }
            ],
        }
    ],
    "schedules": [
        {
            "name": str,
            "method": str,
            "family": Maybe(str),
            "budget": Maybe(float),
            "mean_keep": float,
            "keep": [float],
            "rules": [str],
            "accuracy": float,
            "value": float,
            **_BETWEEN,
        }
    ],
    "trials": [
        {
            "budget": float,
            "search": str,
            "order": int,
            "parameters": Each(object),
            "value": float,
            "accuracy": float,
        }
    ],
    "rules": Maybe({"weighed": Maybe(Each(str))}),
    "local_rules": Maybe(
        {"values": Each(Each(float)), "best": Each(str), "cut_layers": [int]},
    ),
    "cost": [
        {
            "stage": str,
            "evaluations": int,
            "reused": int,
            "stopped": int,
            "requests": int,
            "naive_requests": int,
            "seconds": float,
            "occupancy": float,
        }
    ],
}

FRONTIER: Form = {
    "meta": {
        "fingerprint": str,
        "splits": Each(_DATA),
        "level": float,
        "command": Maybe(str),
        "date": Maybe(str),
    },
    "rows": [
        {
            "name": str,
            "method": str,
            "family": Maybe(str),
            "budget": float,
            "mean_keep": Maybe(float),
            "flops_fraction": Maybe(float),
            "reachable": bool,
            "why_not": Maybe(str),
            "splits": Each(
                {
                    "n": int,
                    "score": float,
                    **_BETWEEN,
                    "logp": Maybe(float),
                    "minus_full": Maybe({"difference": float, **_BETWEEN}),
                    "kinds": Maybe(Each({"n": int, "score": float})),
                }
            ),
        }
    ],
}


def read_search(folder: Path) -> dict[str, Any]:
    """Return what ``search.json`` of a report folder says; raises ConfigurationError."""
    return _read(folder / "search.json", check_search, "run a search into this folder")


def read_frontier(folder: Path) -> dict[str, Any] | None:
    """Return what ``frontier.json`` of a report folder says, None without such a file.

    Raises ConfigurationError when it is malformed.
    """
    path = folder / "frontier.json"
    if not path.exists():
        return None
    return _read(path, check_frontier, "compare the schedules of this folder again")


def check_search(search: Any) -> dict[str, Any]:
    """Return the known parts of what a search did; raises ConfigurationError with the place."""
    return checked(search, SEARCH, "search")


def check_frontier(frontier: Any) -> dict[str, Any]:
    """Return the known parts of a held-out comparison; raises ConfigurationError with the place."""
    known = checked(frontier, FRONTIER, "frontier")
    splits = known["meta"]["splits"].keys()
    seen: set[tuple[str, float]] = set()
    for index, row in enumerate(known["rows"]):
        where = f"frontier.rows[{index}]"
        if row["reachable"]:
            for key in ("mean_keep", "flops_fraction"):
                _demand(row[key] is not None, None, "a number in a reachable row", f"{where}.{key}")
        unknown = sorted(row["splits"].keys() - splits)
        _demand(not unknown, unknown, "about splits that meta names", f"{where}.splits")
        cell = row["method"], row["budget"]
        _demand(cell not in seen, cell, "the only row of its method and budget", where)
        seen.add(cell)
    return known


def _read(path: Path, check: Callable[[Any], dict[str, Any]], next_step: str) -> dict[str, Any]:
    try:
        return check(json.loads(path.read_text(encoding="utf-8")))
    # ValueError: not UTF-8 or not JSON; RecursionError: brackets nested thousands deep
    except (OSError, ValueError, RecursionError) as err:
        raise ConfigurationError(f"{path}: cannot read it ({err}); {next_step}") from err
    except ConfigurationError as err:
        raise ConfigurationError(f"{path}: {err}; {next_step}") from err


def checked(value: Any, form: Form, where: str) -> Any:
    """Return a copy of what ``form`` asks for: other keys are left out, absent ``Maybe`` is None.

    Raises ConfigurationError that says where the value has another form.
    """
    if isinstance(form, Maybe):
        return None if value is None else checked(value, form.form, where)
    if isinstance(form, Each):
        _demand(isinstance(value, Mapping), value, "an object", where)
        return {key: checked(item, form.form, f"{where}.{key}") for key, item in value.items()}
    if isinstance(form, Mapping):
        _demand(isinstance(value, Mapping), value, "an object", where)
        for key, inner in form.items():
            present = key in value or isinstance(inner, Maybe)
            _demand(present, value, f"an object with the key {key!r}", where)
        return {key: checked(value.get(key), form[key], f"{where}.{key}") for key in form}
    if isinstance(form, list):
        _demand(isinstance(value, list | tuple), value, "a list", where)
        return [checked(item, form[0], f"{where}[{index}]") for index, item in enumerate(value)]
    if form in (int, float):
        is_number = isinstance(value, int | form) and not isinstance(value, bool)
        kind = "a finite number" if form is float else "a whole number"
        _demand(is_number and abs(value) < LARGEST, value, kind, where)
    else:
        _demand(isinstance(value, form), value, f"of type {form.__name__}", where)
    return value


def _demand(holds: bool, value: object, expected: str, where: str) -> None:
    if not holds:
        raise ConfigurationError(f"{where} must be {expected}, got {show(value)}")
