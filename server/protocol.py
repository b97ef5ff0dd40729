"""What a client may ask for beside OpenAI's fields, and what it is told in return."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vtr_vllm.errors import InvalidBudget, RequestError, UnknownSchedule
from vtr_vllm.schedules import check_budget
from vtr_vllm.schedules.strict_json import show

__all__ = ["HEADER", "Ask", "Facts", "VTRField", "parse_ask", "refuse_wire_keys"]

HEADER = "X-VTR-Budget"
WIRE_PREFIX = "vtr_"

_EXAMPLE = 'send {"vtr": {"budget": 0.25}} or {"vtr": {"schedule": "fastv-0.5"}}'
_NUMBER = re.compile(r"[0-9]{0,4}\.?[0-9]{1,20}([eE]-?[0-9]{1,3})?", re.ASCII)


class VTRField(BaseModel):
    """The ``vtr`` object of a request body: exactly one of ``budget`` and ``schedule``."""

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


class Facts(BaseModel):
    """The ``vtr`` object of every answer: what the request really ran with."""

    budget: float
    """What was asked for: a mean keep rate; of a named schedule its own."""
    schedule: str
    source: str
    """``full``, ``searched``, ``p-sigmoid default`` (no searched schedule has this budget) or
    ``built-in form``."""
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
    """A checked request for reduction; both None is full budget."""

    budget: float | None = None
    schedule: str | None = None


def parse_ask(field: object, header: Sequence[str] = ()) -> Ask:
    """Read the body's ``vtr`` and the values of the ``X-VTR-Budget`` header.

    Raises InvalidBudget, UnknownSchedule or RequestError with the value and the next step.
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
    if (asked.budget is None) == (asked.schedule is None):
        raise RequestError(
            f"vtr is {show(dict(field))}; it must hold exactly one of budget and schedule:"
            f" {_EXAMPLE}"
        )
    return Ask(asked.budget, asked.schedule)


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


def _translate(field: Mapping[str, object], err: ValidationError) -> RequestError:
    """Pydantic's verdict in our words, for the first thing that is wrong."""
    unknown = sorted(str(key) for key in field if key not in VTRField.model_fields)
    if unknown:
        return RequestError(
            f"vtr has the unknown keys {show(unknown)}; allowed are budget and schedule: {_EXAMPLE}"
        )
    if err.errors()[0]["loc"] == ("budget",):
        return InvalidBudget(
            f"budget {show(field['budget'])} is not a number in (0, 1]; send the mean share of"
            " vision tokens to keep over all layers, such as 0.5, or 1.0 for no reduction"
        )
    return UnknownSchedule(
        f"schedule {show(field['schedule'])} is not a name of 1 to 96 characters;"
        " GET /v1/schedules lists what there is"
    )
