"""What a client may ask for in the ``vtr`` object of a body, and what it is told in return."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from vtr_server.policy.settings import AUTO
from vtr_vllm.errors import (
    InvalidBudget,
    RequestError,
    ScheduleError,
    UnknownSchedule,
    UnknownTier,
    VTRError,
    show,
)

__all__ = [
    "EXAMPLE",
    "Ask",
    "AdaptiveAnswer",
    "AutoAnswer",
    "Read",
    "VTRAnswer",
    "VTRField",
    "parse_field",
    "refuse_wire_keys",
]

WIRE_PREFIX = "vtr_"

MAX_ENTRIES = 1024
"""Of an inline schedule's lists; far more layers than any decoder has."""

EXAMPLE = (
    'send {"vtr": {"budget": 0.25}}, {"vtr": {"tier": "economy"}}, {"vtr": {"schedule":'
    ' "fastv-0.5"}}, {"vtr": {"max_flops_fraction": 0.5}} or {"vtr": {"keep": [a rate per layer],'
    ' "rules": [a rank rule per cut]}}'
)

# Typed for the API description only: ``Schedule`` says which rates and rules are valid.
_Rate = Annotated[Any, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
_Rule = Annotated[Any, WithJsonSchema({"type": "string"})]
_Share = Annotated[float, Field(gt=0, le=1)]
_Floor = Annotated[float, Field(ge=0, le=1)]


class VTRField(BaseModel):
    """The ``vtr`` object of a request body.

    At most one of ``budget``, ``tier``, ``schedule``, ``max_flops_fraction``, and ``keep`` with
    ``rules``; ``minimum`` and ``maximum`` go with budget ``auto``. ``reuse``, ``adapt``,
    ``per_image_floor`` and ``trace`` stand beside any of them, or alone.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    budget: _Share | Literal["auto"] | None = Field(
        default=None,
        description=(
            "Mean share of the vision tokens to keep over all layers; 1 is no reduction. auto:"
            " the server chooses by its load."
        ),
    )
    tier: str | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="A named budget of this server; see GET /v1/schedules.",
    )
    schedule: str | None = Field(
        default=None,
        min_length=1,
        max_length=96,
        description="Name of a stored schedule or of a built-in form; see GET /v1/schedules.",
    )
    max_flops_fraction: _Share | None = Field(
        default=None,
        description=(
            "The largest budget whose prefill costs at most this share of the FLOPs without"
            " reduction, for this very prompt."
        ),
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
    minimum: _Share | None = Field(
        default=None, description="With budget auto: the least budget the server may choose."
    )
    maximum: _Share | None = Field(
        default=None, description="With budget auto: the largest budget the server may choose."
    )
    reuse: bool | None = Field(
        default=None,
        description=(
            "true: reduce by what the images show alone, so that later turns and other questions about"
            " them find their KV in the prefix cache. false: by the question. Left out: as the server"
            " or the key has it, else the better of what is stored for the budget."
        ),
    )
    adapt: bool | None = Field(
        default=None,
        description=(
            "true: of the server's family of schedules, the one that this prompt is predicted to need;"
            " the budget is the mean over prompts. false: one schedule for all. Left out: as the server"
            " or the key has it."
        ),
    )
    per_image_floor: _Floor | None = Field(
        default=None,
        description=(
            "What each of several images keeps whatever the others score: 0 ranks all together, 1"
            " keeps every image's share. Instead of the schedule's own."
        ),
    )
    trace: bool = Field(
        default=False, description="Say in the answer which vision tokens each layer kept."
    )


class AutoAnswer(BaseModel):
    """How the server chose a budget."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    level: float
    """Where the controller stood."""
    minimum: float
    maximum: float


class AdaptiveAnswer(BaseModel):
    """How the schedule was chosen for this very prompt."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    family: str
    """Name of the family."""
    probability: float
    """Of a right answer with the chosen schedule, as predicted; of the last prompt."""
    expected: float
    """The mean of that over the family's calibration data, at this budget."""
    promised: float
    """The mean keep rate that the calibration data came to at this budget."""
    schedules: list[str]
    """What was chosen for each prompt of the request, in the order they were admitted."""


class VTRAnswer(BaseModel):
    """The ``vtr`` object of every answer: what the request really ran with."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    budget: float
    """What was asked for: a mean keep rate; of a named or inline schedule its own."""
    schedule: str
    """Name of the schedule that ran."""
    source: str
    """``full``, ``searched``, ``interpolated`` (between two searched schedules),
    ``local-default`` (no searched schedule has this budget or a lower one), ``p-sigmoid-default`` (the
    same where ``reuse`` is false), ``family`` (with ``adapt``), ``built-in-form`` or ``inline``."""
    tier: str | None = None
    """The tier that was asked for."""
    asked_by: str = "default"
    """What decided: ``body``, ``header``, ``model``, ``detail``, ``key-default``, ``default``."""
    auto: AutoAnswer | None = None
    """Only with budget ``auto``."""
    adaptive: AdaptiveAnswer | None = None
    """Only where the schedule was chosen for the prompt."""
    per_image_floor: float = 0.0
    """What each of several images kept whatever the others scored, as asked for or of the
    schedule."""
    reuse: bool = False
    """Whether later requests can use the KV of what was reduced; false at full budget too, where
    vLLM itself caches everything."""
    vision_tokens: int
    """Vision tokens in the prompt (of all prompts, where a request has several)."""
    vision_tokens_cached: int = 0
    """Those of them whose KV came from the prefix cache."""
    kept_per_layer: list[int]
    """Vision tokens that each decoder layer saw."""
    mean_keep: float
    """The mean keep rate that these whole numbers come to; 1.0 without vision tokens."""
    flops_fraction: float
    """Prefill FLOPs of the language model over those of no reduction."""
    trace: dict[str, Any] | None = None
    """Only where it was asked for: ``images``, ``cuts`` and ``truncated``."""


@dataclass(frozen=True)
class Ask:
    """One way of asking for reduction; all None is no wish at all."""

    budget: float | Literal["auto"] | None = None
    tier: str | None = None
    schedule: str | None = None
    max_flops_fraction: float | None = None
    keep: list[Any] | None = None
    rules: list[Any] | None = None
    """``keep`` and ``rules`` are both lists or both None; their entries are not checked yet."""
    minimum: float | None = None
    maximum: float | None = None
    """Bounds of budget ``auto``."""


class Read(NamedTuple):
    """The ``vtr`` object of a body; None is what it does not say."""

    ask: Ask | None = None
    trace: bool = False
    per_image_floor: float | None = None
    reuse: bool | None = None
    adapt: bool | None = None


def parse_field(field: object) -> Read:
    """Read the body's ``vtr``.

    Raises InvalidBudget, UnknownTier, UnknownSchedule, ScheduleError or RequestError with the
    value and the next step.
    """
    if field is None:
        return Read()
    if not isinstance(field, Mapping):
        raise RequestError(f"vtr is {show(field)}; it must be an object: {EXAMPLE}")
    try:
        asked = VTRField.model_validate(dict(field))
    except ValidationError as err:
        raise _translate(field, err) from err
    if (asked.keep is None) != (asked.rules is None):
        raise RequestError(
            f"vtr is {show(dict(field))}; keep and rules go together, and rules may be empty:"
            f" {EXAMPLE}"
        )
    ways = [asked.budget, asked.tier, asked.schedule, asked.max_flops_fraction, asked.keep]
    given = len(ways) - ways.count(None)
    beside = asked.trace or (asked.per_image_floor, asked.reuse, asked.adapt) != (None,) * 3
    if given > 1 or (given == 0 and not beside):
        raise RequestError(
            f"vtr is {show(dict(field))}; it must hold exactly one of budget, tier, schedule,"
            f" max_flops_fraction, and keep with rules: {EXAMPLE}"
        )
    _check_bounds(asked)
    values = asked.model_dump(exclude={"trace", "per_image_floor", "reuse", "adapt"})
    ask = Ask(**values) if given else None
    return Read(ask, asked.trace, asked.per_image_floor, asked.reuse, asked.adapt)


def refuse_wire_keys(xargs: Mapping[str, object] | None) -> None:
    """Refuse engine keys in ``vllm_xargs``: a client asks through the vtr field only."""
    smuggled = sorted(key for key in xargs or () if key.lower().startswith(WIRE_PREFIX))
    if smuggled:
        raise RequestError(
            f"vllm_xargs has {show(smuggled)}; keys that start with {WIRE_PREFIX} belong to the"
            f" server: {EXAMPLE}"
        )


def _check_bounds(asked: VTRField) -> None:
    if asked.minimum is None and asked.maximum is None:
        return
    if asked.budget != AUTO:
        given = {"minimum": asked.minimum, "maximum": asked.maximum}
        said = " and ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        raise RequestError(
            f'vtr has {said}, which bounds budget "auto" only; leave it out or ask for budget'
            ' "auto"'
        )
    if (asked.minimum or 0.0) > (asked.maximum or 1.0):
        raise InvalidBudget(
            f"minimum {asked.minimum} is above maximum {asked.maximum}; exchange them"
        )


def _translate(field: Mapping[str, object], err: ValidationError) -> VTRError:
    """Pydantic's verdict in our words, for the first thing that is wrong."""
    unknown = sorted(str(key) for key in field if key not in VTRField.model_fields)
    if unknown:
        return RequestError(
            f"vtr has the unknown keys {show(unknown)}; allowed are"
            f" {', '.join(VTRField.model_fields)}: {EXAMPLE}"
        )
    wrong = str(err.errors()[0]["loc"][0])
    value = show(field[wrong])
    if wrong in ("keep", "rules"):
        return ScheduleError(
            f"{wrong} {value} is not a list of at most {MAX_ENTRIES} entries; send"
            " one keep rate per decoder layer and one rank rule per cut, as the example of"
            " GET /v1/schedules does"
        )
    if wrong == "tier":
        return UnknownTier(f"tier {value} is not a name; GET /v1/schedules lists the tiers")
    if wrong == "schedule":
        return UnknownSchedule(
            f"schedule {value} is not a name of 1 to 96 characters; GET /v1/schedules lists what"
            " there is"
        )
    if wrong in ("trace", "reuse", "adapt"):
        return RequestError(f"{wrong} is {value}; it must be true or false")
    if wrong == "per_image_floor":
        return RequestError(
            f"per_image_floor {value} is not a number in [0, 1]; send 0 to rank all images"
            " together, 1 for every image's proportional share, or a number between"
        )
    return InvalidBudget(
        f"{wrong} {value} is not a number in (0, 1]; send the mean share of vision tokens to keep"
        " over all layers, such as 0.5, or 1.0 for no reduction"
    )
