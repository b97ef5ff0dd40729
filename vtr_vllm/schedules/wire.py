"""A schedule as it travels in vLLM's ``SamplingParams.extra_args``: scalars and flat lists only.

The engine holds no schedule files; what a request carries is all that it knows.
"""

from collections.abc import Mapping, Sequence

from vtr_vllm.errors import RequestError, ScheduleError, show
from vtr_vllm.ranking import RankRule
from vtr_vllm.schedules.floors import check_floor
from vtr_vllm.schedules.keep_rates import check_keep_and_rules

KEEP_KEY = "vtr_keep"
RULES_KEY = "vtr_rules"
FLOOR_KEY = "vtr_floor"
TRACE_KEY = "vtr_trace"
UNITS_KEY = "vtr_units"
_KEYS = (KEEP_KEY, RULES_KEY, FLOOR_KEY, TRACE_KEY, UNITS_KEY)
_MAX_TRACE_ID = 64

Wire = dict[str, list[float] | list[str] | float]


def to_wire(keep: Sequence[float], rules: Sequence[RankRule], per_image_floor: float = 0.0) -> Wire:
    """``{"vtr_keep": [float] * layers, "vtr_rules": [str] * cuts}``; ``vtr_floor`` unless 0."""
    wire: Wire = {KEEP_KEY: list(keep), RULES_KEY: [str(rule) for rule in rules]}
    return wire | {FLOOR_KEY: per_image_floor} if per_image_floor else wire


def parse_wire(
    extra_args: Mapping[str, object], layers: int
) -> tuple[tuple[float, ...], tuple[RankRule, ...]] | None:
    """Validate what a request carries; None when it carries no keep curve.

    Keys that do not start with ``vtr_`` belong to others and are left alone. Raises RequestError
    on anything malformed, and on any other key that starts with ``vtr_``: a misspelt key must
    not run at full cost in silence.
    """
    unknown = [
        key
        for key in extra_args
        if isinstance(key, str) and key.startswith("vtr_") and key not in _KEYS
    ]
    if unknown:
        raise RequestError(
            f"extra_args has the unknown keys {show(unknown)}; allowed are {', '.join(_KEYS)}"
        )
    if not {KEEP_KEY, RULES_KEY, FLOOR_KEY} & extra_args.keys():
        return None
    for key in (KEEP_KEY, RULES_KEY):
        if key not in extra_args:
            raise RequestError(
                f"extra_args has no {key}; {KEEP_KEY} and {RULES_KEY} go together, and"
                f" {FLOOR_KEY} with them: send both"
            )
    try:
        return check_keep_and_rules(extra_args[KEEP_KEY], extra_args[RULES_KEY], layers)
    except ScheduleError as err:
        raise RequestError(f"extra_args {KEEP_KEY}, {RULES_KEY}: {err}") from err


def parse_floor(extra_args: Mapping[str, object]) -> float:
    """The per-image floor that a request carries, 0 for none; raises RequestError."""
    try:
        return check_floor(extra_args.get(FLOOR_KEY, 0.0))
    except ScheduleError as err:
        raise RequestError(f"extra_args {FLOOR_KEY}: {err}") from err


def parse_trace(extra_args: Mapping[str, object]) -> str | None:
    """The name under which the request's trace is kept; None when it asks for none.

    Raises RequestError for anything but a text of 1 to 64 characters.
    """
    if TRACE_KEY not in extra_args:
        return None
    name = extra_args[TRACE_KEY]
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_TRACE_ID:
        raise RequestError(
            f"extra_args {TRACE_KEY} is {show(name)}; it must be a text of 1 to {_MAX_TRACE_ID}"
            " characters, or be left out"
        )
    return name


def parse_units(extra_args: Mapping[str, object]) -> list[tuple[int, int, int]]:
    """(frames, rows, columns) of each image or video, as the front end that admitted them knows it.

    Zeros where it does not; empty where it said nothing. Raises RequestError for anything else.
    """
    flat = extra_args.get(UNITS_KEY, [])
    if not isinstance(flat, list) or len(flat) % 3 or not all(type(n) is int for n in flat):
        raise RequestError(
            f"extra_args {UNITS_KEY} is {show(flat)}; it is written by the front end: leave it out"
        )
    return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
