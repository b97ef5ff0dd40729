"""What a client may ask for beside OpenAI's fields, and what it is told in return."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from vtr_vllm.errors import (
    InvalidBudget,
    RequestError,
    ScheduleError,
    UnknownSchedule,
    VTRError,
)
from vtr_vllm.schedules import check_budget
from vtr_vllm.schedules.strict_json import show

__all__ = ["HEADER", "Ask", "Facts", "VTRField", "parse_ask", "refuse_wire_keys"]

HEADER = "X-VTR-Budget"
WIRE_PREFIX = "vtr_"

MAX_ENTRIES = 1024
"""Of an inline schedule's lists; far more layers than any decoder has."""

_EXAMPLE = (
    'send {"vtr": {"budget": 0.25}}, {"vtr": {"schedule": "fastv-0.5"}} or'
    ' {"vtr": {"keep": [a rate per layer], "rules": [a rank rule per cut]}}'
)
_NUMBER = re.compile(r"[0-9]{0,4}\.?[0-9]{1,20}([eE]-?[0-9]{1,3})?", re.ASCII)


# Typed for the API description only: ``Schedule`` says which rates and rules are valid.
_Rate = Annotated[Any, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
_Rule = Annotated[Any, WithJsonSchema({"type": "string"})]


class VTRField(BaseModel):
    """The ``vtr`` object of a request body: a budget, a schedule's name, or a schedule inline.

    Exactly one of ``budget``, ``schedule``, and ``keep`` with ``rules``.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    budget: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Mean share of the vision tokens to keep over all layers; 1 is no reduction.",
    )
    schedule: str | None = Field(
        default=None,
        min_length=1,
        max_length=96,
        description="Name of a stored schedule or of a built-in form; see GET /v1/schedules.",
    )
    keep: list[_Rate] | None = Field(
        default=None,
        max_length=MAX_ENTRIES,
        description="Inline schedule: the keep rate of each decoder layer, never rising.",
    )
    rules: list[_Rule] | None = Field(
        default=None,
        max_length=MAX_ENTRIES,
        description="Inline schedule: the rank rule of each cut; empty where nothing is dropped.",
    )


class Facts(BaseModel):
    """The ``vtr`` object of every answer: what the request really ran with."""

    budget: float
    """What was asked for: a mean keep rate; of a named or inline schedule its own."""
    schedule: str
    source: str
    """``full``, ``searched``, ``interpolated`` (between two searched schedules), ``p-sigmoid
    default`` (no searched schedule has this budget or a lower one), ``built-in form`` or
    ``inline``."""
    vision_tokens: int
    """Vision tokens in the prompt (of all prompts, where a request has several)."""
    kept_per_layer: list[int]
    """Vision tokens that each decoder layer saw."""
    mean_keep: float
    """The mean keep rate that these whole numbers come to; 1.0 without vision tokens."""
    flops_fraction: float
    """Prefill FLOPs of the language model over those of no reduction."""


@dataclass(frozen=True)
class Ask:
    """A request for reduction in one of its three ways; all None is full budget."""

    budget: float | None = None
    schedule: str | None = None
    keep: list[Any] | None = None
    rules: list[Any] | None = None
    """``keep`` and ``rules`` are both lists or both None; their entries are not checked yet."""


def parse_ask(field: object, header: Sequence[str] = ()) -> Ask:
    """Read the body's ``vtr`` and the values of the ``X-VTR-Budget`` header.

    Raises InvalidBudget, UnknownSchedule, ScheduleError or RequestError with the value and the
    next step.
    """
    if header and field is not None:
        raise RequestError(
            f"the body has vtr = {show(field)} and the header {HEADER} = {show(list(header))};"
            " send one of them"
        )
    if header:
        return Ask(budget=_header_budget(header))
    if field is None:
        return Ask()
    if not isinstance(field, Mapping):
        raise RequestError(f"vtr is {show(field)}; it must be an object: {_EXAMPLE}")
    try:
        asked = VTRField.model_validate(dict(field))
    except ValidationError as err:
        raise _translate(field, err) from err
    if (asked.keep is None) != (asked.rules is None):
        raise RequestError(
            f"vtr is {show(dict(field))}; keep and rules go together, and rules may be empty:"
            f" {_EXAMPLE}"
        )
    if [asked.budget, asked.schedule, asked.keep].count(None) != 2:
        raise RequestError(
            f"vtr is {show(dict(field))}; it must hold exactly one of budget, schedule, and keep"
            f" with rules: {_EXAMPLE}"
        )
    return Ask(asked.budget, asked.schedule, asked.keep, asked.rules)


def refuse_wire_keys(xargs: Mapping[str, object] | None) -> None:
    """Refuse engine keys in ``vllm_xargs``: a client asks through the vtr field only."""
    smuggled = sorted(key for key in xargs or () if key.lower().startswith(WIRE_PREFIX))
    if smuggled:
        raise RequestError(
            f"vllm_xargs has {show(smuggled)}; keys that start with {WIRE_PREFIX} belong to the"
            f" server: {_EXAMPLE}"
        )


def _header_budget(values: Sequence[str]) -> float:
    if len(values) != 1 or not _NUMBER.fullmatch(values[0]):
        raise InvalidBudget(
            f"header {HEADER} is {show(list(values))}; it must be one decimal number in (0, 1],"
            " such as 0.25"
        )
    return check_budget(float(values[0]))


def _translate(field: Mapping[str, object], err: ValidationError) -> VTRError:
    """Pydantic's verdict in our words, for the first thing that is wrong."""
    unknown = sorted(str(key) for key in field if key not in VTRField.model_fields)
    if unknown:
        return RequestError(
            f"vtr has the unknown keys {show(unknown)}; allowed are budget, schedule, keep and"
            f" rules: {_EXAMPLE}"
        )
    wrong = err.errors()[0]["loc"][0]
    if wrong in ("keep", "rules"):
        return ScheduleError(
            f"{wrong} {show(field[wrong])} is not a list of at most {MAX_ENTRIES} entries; send"
            " one keep rate per decoder layer and one rank rule per cut, as the example of"
            " GET /v1/schedules does"
        )
    if wrong == "budget":
        return InvalidBudget(
            f"budget {show(field['budget'])} is not a number in (0, 1]; send the mean share of"
            " vision tokens to keep over all layers, such as 0.5, or 1.0 for no reduction"
        )
    return UnknownSchedule(
        f"schedule {show(field['schedule'])} is not a name of 1 to 96 characters;"
        " GET /v1/schedules lists what there is"
    )
