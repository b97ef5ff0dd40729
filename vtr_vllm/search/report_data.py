"""The two JSON files that a report is made from: what they must hold, and how they are read."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vtr_vllm.errors import ConfigurationError, show
from vtr_vllm.faults import first_fault

_LARGEST = 10**300  # beyond it are whole numbers that no float can be
Number = Annotated[float, Field(gt=-_LARGEST, lt=_LARGEST)]
Whole = Annotated[int, Field(gt=-_LARGEST, lt=_LARGEST)]


class _Form(BaseModel):
    """An object; what is not named here is left out, what is None may be absent."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class _Between(_Form):
    low: Number
    high: Number


class _Data(_Form):
    path: str
    sha256: str
    n: Whole
    answered: bool | None = None


class _Unreduced(_Between):
    value: Number
    accuracy: Number


class _SearchMeta(_Form):
    model: str
    fingerprint: str
    n_vision: Whole
    data: _Data
    family: str | None = None
    seed: Whole
    objective: str
    tolerance: Number
    versions: dict[str, str]
    command: str
    date: str
    unreduced: _Unreduced
    finished: bool | None = None


class _Step(_Form):
    layer: Whole
    count: Whole
    keep: Number
    accuracy: Number
    value: Number
    mean_keep: Number
    evaluations: Whole


class _GSearch(_Form):
    name: str
    steps: list[_Step]


class _Schedule(_Between):
    name: str
    method: str
    family: str | None = None
    budget: Number | None = None
    mean_keep: Number
    keep: list[Number]
    rules: list[str]
    accuracy: Number
    value: Number


class _Trial(_Form):
    budget: Number
    search: str
    order: Whole
    parameters: dict[str, Any]
    value: Number
    accuracy: Number
    taken: bool = False


class _Rules(_Form):
    weighed: dict[str, str] | None = None


class _LocalRules(_Form):
    values: dict[str, dict[str, Number]]
    best: dict[str, str]
    cut_layers: list[Whole]


class _Cost(_Form):
    stage: str
    evaluations: Whole
    reused: Whole
    stopped: Whole
    requests: Whole
    naive_requests: Whole
    seconds: Number
    occupancy: Number


class Search(_Form):
    """``search.json``: what a search did."""

    meta: _SearchMeta
    g_search: list[_GSearch]
    schedules: list[_Schedule]
    trials: list[_Trial]
    rules: _Rules | None = None
    local_rules: _LocalRules | None = None
    cost: list[_Cost]


class _FrontierMeta(_Form):
    fingerprint: str
    splits: dict[str, _Data]
    level: Number
    command: str | None = None
    date: str | None = None


class _Difference(_Between):
    difference: Number


class _Kind(_Form):
    n: Whole
    score: Number


class _Split(_Between):
    n: Whole
    score: Number
    logp: Number | None = None
    minus_full: _Difference | None = None
    kinds: dict[str, _Kind] | None = None


class _Row(_Form):
    name: str
    method: str
    family: str | None = None
    budget: Number
    mean_keep: Number | None = None
    flops_fraction: Number | None = None
    reachable: bool
    why_not: str | None = None
    splits: dict[str, _Split]


class Frontier(_Form):
    """``frontier.json``: a held-out comparison."""

    meta: _FrontierMeta
    rows: list[_Row]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        seen: set[tuple[str, float]] = set()
        for index, row in enumerate(self.rows):
            where = f"rows.{index}"
            if row.reachable and None in (row.mean_keep, row.flops_fraction):
                raise ValueError(
                    f"{where} is reachable: mean_keep and flops_fraction must be numbers, got"
                    f" {row.mean_keep} and {row.flops_fraction}"
                )
            if unknown := sorted(row.splits.keys() - self.meta.splits.keys()):
                raise ValueError(f"{where}.splits must be among meta's, got {show(unknown)}")
            cell = row.method, row.budget
            if cell in seen:
                raise ValueError(
                    f"{where} must be the only row of its method and budget, got {show(cell)}"
                )
            seen.add(cell)
        return self


def read_search(folder: Path) -> dict[str, Any]:
    """Return what ``search.json`` of a report folder says; raises ConfigurationError."""
    return _read(folder / "search.json", Search, "run a search into this folder")


def read_frontier(folder: Path) -> dict[str, Any] | None:
    """Return what ``frontier.json`` of a report folder says, None without such a file.

    Raises ConfigurationError when it is malformed.
    """
    path = folder / "frontier.json"
    if not path.exists():
        return None
    return _read(path, Frontier, "compare the schedules of this folder again")


def _read(path: Path, form: type[_Form], next_step: str) -> dict[str, Any]:
    try:
        return form.model_validate_json(path.read_bytes()).model_dump()
    except OSError as err:
        raise ConfigurationError(f"{path}: cannot read it ({err}); {next_step}") from err
    except ValidationError as err:
        raise ConfigurationError(f"{path}: {first_fault(err, given=True)}; {next_step}") from err
