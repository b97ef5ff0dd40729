"""What a search can be asked: one model, from which its command line and the jobs over HTTP are made.

Every field is a flag of ``vtr search`` (``max_tokens`` is ``--max-tokens``) and a field of a job, with
the same range and the same default. Loads neither torch nor the search.
"""

import argparse
import json
import types
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from vtr_vllm.errors import show
from vtr_vllm.faults import first_fault

__all__ = [
    "KINDS",
    "BackendOptions",
    "Families",
    "FamilyOptions",
    "Inner",
    "Kind",
    "Objective",
    "SearchOptions",
    "add_flags",
    "flag_of",
    "read_flags",
    "to_arguments",
]

Kind = Literal["g-search", "p-sigmoid", "all"]
Families = Literal["guided", "local", "both"]
Objective = Literal["accuracy", "label-free"]
Inner = Literal["bisection", "bayes"]
KINDS: tuple[Kind, ...] = get_args(Kind)

M = TypeVar("M", bound=BaseModel)

_LONGEST_ARGS = 10_000  # characters of JSON
_CONFIG = ConfigDict(
    extra="forbid", strict=True, frozen=True, allow_inf_nan=False, serialize_by_alias=True
)


def _all_different(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError("the values must all be different")
    return values


def _plain_json(values: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(values, allow_nan=False)) > _LONGEST_ARGS:
        raise ValueError(f"more than {_LONGEST_ARGS} characters of JSON")
    return values


def _without_slash(url: Any) -> Any:
    return url.rstrip("/") if isinstance(url, str) else url


Text = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]
URL = Annotated[
    str,
    BeforeValidator(_without_slash),
    Field(max_length=1024, pattern=r"^https?://[^\s,/]+(/[^\s,]*)?$"),
]
Budget = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class BackendOptions(BaseModel):
    """Where candidates are evaluated."""

    model_config = _CONFIG

    servers: Annotated[list[URL], Field(max_length=64), AfterValidator(_all_different)] = Field(
        default=[], description="running VTR servers to ask, instead of engines of our own"
    )
    engines: int = Field(
        default=1, ge=1, le=64, description="engines of our own, a process each with its own GPUs"
    )
    max_tokens: int = Field(default=32, ge=1, le=32_768, description="longest answer")
    engine_args: Annotated[dict[str, JsonValue], AfterValidator(_plain_json)] = Field(
        default={}, description="further arguments of vLLM's LLM class, for engines of our own"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        own = [name for name in ("engines", "engine_args") if name in self.model_fields_set]
        if self.servers and own:
            raise ValueError(
                f"servers and {' and '.join(own)} are given; running servers have engines of their"
                " own: leave one out"
            )
        return self


class SearchOptions(BackendOptions):
    """One search; what is null or left out takes its default."""

    kind: Kind = Field(description="what to search")
    model: Text = Field(description="model path or name, `demo` or `photo`")
    data: Text = Field(description="file of calibration data, JSON Lines")
    heldout: Text | None = Field(
        default=None, description="file of data to compare on when the search is done"
    )
    budgets: Annotated[
        list[Budget], Field(min_length=1, max_length=32), AfterValidator(_all_different)
    ] = Field(default=[0.75, 0.5, 0.375, 0.25, 0.1875], description="mean keep rates")
    objective: Objective = Field(default="accuracy", description="what quality is measured by")
    family: Families = Field(
        default="guided",
        description="schedules that look at the question, local ones, which later turns of a"
        " conversation reuse, or one after the other",
    )
    tolerance: Share = Field(
        default=0.005,
        description="what G-Search may lose: share of accuracy, or nats of divergence",
    )
    inner: Inner = Field(default="bisection", description="how G-Search searches a layer's count")
    weight: Share = Field(
        default=0.005, alias="lambda", description="worth of dropping everything, for inner bayes"
    )
    trials: int = Field(default=32, ge=1, le=10_000, description="per Bayesian optimisation")
    items: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="at most so many items to score a candidate on; left out, curves are compared"
        " on 300, rules and moves on 100 and 300, everything else on all that are searched on",
    )
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        le=100_000,
        description="end after so long, with what was found; the same search again goes on",
    )
    # 2^31 - 1 is the largest whole number of the journal's column in every database
    seed: int = Field(default=0, ge=0, lt=1 << 31, description="of the proposals")


class FamilyOptions(BackendOptions):
    """One search for a family of schedules, among which each prompt's is chosen."""

    model: Text = Field(description="model path or name, `demo` or `photo`")
    data: Text = Field(description="file of calibration data, JSON Lines")
    members: int = Field(default=6, ge=2, le=8, description="schedules of the family")
    pool: Literal["all", "folder"] = Field(
        default="all",
        description="what members are first chosen from: plain schedules, curves and what --out has"
        " already, or the last alone",
    )
    budgets: Annotated[
        list[Budget], Field(min_length=1, max_length=32), AfterValidator(_all_different)
    ] = Field(
        default=[0.375, 0.25, 0.1875, 0.125],
        description="mean keep rates over all prompts that the members are chosen for",
    )
    objective: Objective = Field(default="accuracy", description="what quality is measured by")
    rounds: int = Field(
        default=2, ge=0, le=100, description="of giving prompts to schedules and searching these"
    )
    items: int = Field(
        default=300, ge=100, le=1_000_000, description="that a schedule is scored on to be chosen"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 31, description="of folds and moves")


def flag_of(model: type[BaseModel], name: str) -> str:
    """The flag of a field: ``max_tokens`` has ``--max-tokens``."""
    return "--" + (model.model_fields[name].alias or name).replace("_", "-")


def add_flags(
    parser: argparse.ArgumentParser, model: type[BaseModel], without: Iterable[str] = ()
) -> None:
    """A flag for each field of ``model``; ``read_flags`` makes the model of what they were given."""
    for name, field in model.model_fields.items():
        if name in without:
            continue
        default = field.get_default(call_default_factory=True)
        told = (
            ""
            if field.is_required() or default in (None, [], {}, False)
            else f" (default: {_text(default)})"
        )
        parser.add_argument(
            flag_of(model, name),
            dest=name,
            required=field.is_required(),
            default=argparse.SUPPRESS,  # so that the model knows what was given
            help=f"{field.description}{told}".replace("%", "%%"),
            **_taking(field),
        )


def _taking(field: FieldInfo) -> dict[str, Any]:
    """How a flag takes its value; one that is true or false has none, and is false where it is not given."""
    if field.annotation is bool:
        return {"action": "store_true"}
    if values := _literals(field):
        return {"choices": values}
    return {"type": _reader(field), "metavar": _metavar(field)}


def read_flags(parser: argparse.ArgumentParser, model: type[M], given: argparse.Namespace) -> M:
    """The model of what was given; like argparse, ends the process where values do not go together."""
    names = {name: field.alias or name for name, field in model.model_fields.items()}
    try:
        return model(**{names[k]: value for k, value in vars(given).items() if k in names})
    except ValidationError as err:
        parser.error(first_fault(err))


def to_arguments(options: SearchOptions) -> list[str]:
    """The command line that asks for the same: kind, and a flag for each field that was given."""
    arguments: list[str] = [options.kind]
    for name in type(options).model_fields:
        value = getattr(options, name)
        if name == "kind" or name not in options.model_fields_set or value in (None, []):
            continue
        # as one word: a value may begin with a dash
        arguments.append(f"{flag_of(type(options), name)}={_text(value)}")
    return arguments


def _reader(field: FieldInfo) -> Callable[[str], Any]:
    """From a flag's text to the field's value; argparse says what it raises."""
    adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation(), config=_CONFIG)
    return partial(_read, _parser_of(field), adapter)


def _read(parse: Callable[[str], Any], adapter: TypeAdapter[Any], text: str) -> Any:
    try:
        return adapter.validate_python(parse(text))
    except ValidationError as err:
        raise argparse.ArgumentTypeError(f"{show(text)}: {first_fault(err)}") from err
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{show(text)}: {err}") from err


def _parser_of(field: FieldInfo) -> Callable[[str], Any]:
    kind = _plain(field.annotation)
    if get_origin(kind) is dict:
        return json.loads
    if get_origin(kind) is list:
        return partial(_listed, _plain(get_args(kind)[0]))
    readers: dict[type, Callable[[str], Any]] = {int: _whole, float: _number, str: str}
    return readers[kind]


def _listed(kind: type, text: str) -> list[Any]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):  # nothing at all would mean the default
        raise ValueError("give values with commas between them")
    readers: dict[type, Callable[[str], Any]] = {int: _whole, float: _number}
    return [readers.get(kind, str)(part) for part in parts]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as err:
        raise ValueError("give a whole number") from err


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as err:
        raise ValueError(f"{text!r} is no number") from err


def _text(value: Any) -> str:
    """A value as its flag takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _plain(annotation: Any) -> Any:
    """The type itself: neither optional nor annotated."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        (inner,) = (each for each in get_args(annotation) if each is not type(None))
        return _plain(inner)
    return annotation


def _literals(field: FieldInfo) -> tuple[str, ...]:
    kind = _plain(field.annotation)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _metavar(field: FieldInfo) -> str:
    kind = _plain(field.annotation)
    if get_origin(kind) is dict:
        return "JSON"
    if get_origin(kind) is list:
        return {int: "N,N", float: "X,X"}.get(_plain(get_args(kind)[0]), "URL,URL")
    return {int: "N", float: "X", str: "TEXT"}[kind]
