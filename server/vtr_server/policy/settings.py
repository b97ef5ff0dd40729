"""The server's settings: one TOML file, checked when the server starts.

``vtr serve MODEL --settings FILE``. Without a file every default below holds: an open server
without policy, whose limits only keep one request from taking everything.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.faults import first_fault

__all__ = [
    "AUTO",
    "AdaptiveSettings",
    "AdminSettings",
    "BudgetSettings",
    "ElasticSettings",
    "JobsSettings",
    "KeySettings",
    "LimitSettings",
    "MediaSettings",
    "PageSettings",
    "Scope",
    "ServerSettings",
    "check_adapt",
    "check_reuse",
]

AUTO: Final = "auto"

Scope = Literal["generate", "metrics", "admin", "jobs"]


Budget = Annotated[float, Field(gt=0, le=1, strict=True)]
Asked = Budget | Literal["auto"]
Seconds = Annotated[float, Field(gt=0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Allowance = Annotated[int, Field(ge=0, strict=True, description="0 is no limit")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BudgetSettings(_Table):
    """What a request gets that asks for nothing, and what it may ask for."""

    default: Asked | None = None
    """None: of the server 1.0 (or its maximum); of a key the server's default, within the key's
    bounds."""
    minimum: Budget | None = None
    maximum: Budget | None = None
    reuse: Annotated[bool, Field(strict=True)] | None = None
    """Whether later requests shall be able to use the KV of a request's images; None: of the server
    no, of a key as the server has it."""
    adapt: Annotated[bool, Field(strict=True)] | None = None
    """Whether each request gets the schedule of the family that its prompt needs, with the budget as
    their mean; None as for ``reuse``, which wins where both are asked for by default."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.minimum or 0.0, self.maximum or 1.0
        if low > high:
            raise ValueError(f"minimum {low} is above maximum {high}")
        if self.default not in (None, AUTO) and not low <= float(self.default) <= high:
            raise ValueError(f"default {self.default} lies outside [{low}, {high}]")
        return self


class ElasticSettings(_Table):
    """The controller behind budget ``auto``."""

    ttft_seconds: Seconds
    """Objective: 95 of 100 requests get their first token within this time."""
    levels: tuple[Budget, ...] = (1.0, 0.75, 0.5, 0.375, 0.25)
    """Budgets that the controller steps through, descending."""
    interval_seconds: Seconds = 0.5
    """One decision, and at most one step, per interval."""

    @field_validator("levels")
    @classmethod
    def _descending(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if len(levels) < 2 or list(levels) != sorted(set(levels), reverse=True):
            raise ValueError("levels must be at least two budgets, each below the one before")
        return levels


class AdaptiveSettings(_Table):
    """The choice among the schedules of a family."""

    confidence: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """No schedule runs whose probability of a right answer is predicted below it: a larger one does,
    and the largest where none is likely enough."""


class LimitSettings(_Table):
    """What one request may take, and how many may be inside. Per API server process.

    What is per minute or per caller is of each address, and of each key that does not say otherwise.
    """

    body_bytes: Count = 32 * 2**20
    body_seconds: Seconds = 30.0
    images: Count = 16
    image_pixels: Count = 4096 * 4096
    video_frames: Count = 32
    decoded_pixels: Count = 32 * 4096 * 4096
    """Of all requests at once."""
    in_flight: Count = 512
    in_flight_per_caller: Allowance = 0
    uploads: Count = 1024
    uploads_per_caller: Count = 512
    request_seconds: Seconds = 600.0
    requests_per_minute: Allowance = 0
    vision_tokens_per_minute: Allowance = 0

    @model_validator(mode="after")
    def _one_image_fits(self) -> Self:
        if self.decoded_pixels < self.image_pixels:
            raise ValueError(
                f"decoded_pixels {self.decoded_pixels} is below image_pixels {self.image_pixels}: an"
                " image that is allowed could never be decoded"
            )
        return self


class MediaSettings(_Table):
    """Where image addresses may lead, and what may be opened."""

    domains: tuple[str, ...] = ()
    """Hosts that may be fetched from; none named: any public one."""
    private_addresses: Annotated[bool, Field(strict=True)] = False
    video_files: Annotated[bool, Field(strict=True)] = False
    """Whether vLLM's reader may open videos that are files, whatever is in them."""


class AdminSettings(_Table):
    """Address of metrics, health and admin routes, when they have one of their own."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8001


class PageSettings(_Table):
    """The page at ``/``."""

    enabled: Annotated[bool, Field(strict=True)] = True


class JobsSettings(_Table):
    """Search jobs on this server; as the flags of ``vtr search serve``."""

    root: Path = Path("jobs")
    data_root: Path = Path("data")
    model_root: Path | None = None
    models: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    """Servers that jobs may search on; without ``memory_share`` all jobs do, on all of them."""
    memory_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of a device's memory, for each engine that a job starts; None: jobs start none."""
    workers: Count = 1

    @model_validator(mode="after")
    def _engine_has_room(self) -> Self:
        if not self.servers and self.memory_share is None:
            raise ValueError(
                "a job would start an engine beside the serving one, and vLLM would let it take"
                " nearly all of the device's memory: give servers to search on, such as this one"
                ' (servers = ["http://127.0.0.1:8000"]), or memory_share = 0.3 for engines of jobs'
            )
        if self.memory_share is not None and self.memory_share * self.workers >= 1:
            raise ValueError(
                f"{self.workers} workers with a memory_share of {self.memory_share:g} each leave"
                " nothing for the serving engine: give fewer, or a smaller share"
            )
        return self


class KeySettings(_Table):
    """One API key, of which only the hash is known."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
    """Label of the metrics."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...] = ("generate",)
    requests_per_minute: Allowance | None = None
    vision_tokens_per_minute: Allowance | None = None
    in_flight: Allowance | None = None
    budget: BudgetSettings = BudgetSettings()
    """Like the three above: what a key leaves out is the server's."""


_TierName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


def _default_tiers() -> dict[str, float | str]:
    return {"full": 1.0, "lossless": "lossless", "balanced": 0.5, "economy": 0.25}


class ServerSettings(_Table):
    """Everything that an operator sets. A name of a tier stands for a budget or a schedule."""

    budget: BudgetSettings = BudgetSettings()
    tiers: dict[_TierName, Budget | str] = Field(default_factory=_default_tiers)
    detail: dict[Literal["low", "high", "auto"], Budget | str] = {}
    """What OpenAI's ``image_url.detail`` asks for: a tier or a budget."""
    elastic: ElasticSettings | None = None
    adaptive: AdaptiveSettings = AdaptiveSettings()
    limits: LimitSettings = LimitSettings()
    media: MediaSettings = MediaSettings()
    admin: AdminSettings | None = None
    page: PageSettings = PageSettings()
    jobs: JobsSettings | None = None
    keys: tuple[KeySettings, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a TOML file; raises ConfigurationError naming the file and what is wrong in it."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as err:
            raise ConfigurationError(
                f"settings file {path} cannot be read ({err.strerror}); name another"
            ) from err
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
            raise ConfigurationError(f"settings file {path} is no TOML: {err}") from err
        except ValidationError as err:
            raise ConfigurationError(
                f"settings file {path}: {first_fault(err)}; see docs/settings.md"
            ) from err

    def of_a_batch(self) -> Self:
        """Without what is of a server: a port, a page, and searches that others may start."""
        return self.model_copy(
            update={"admin": None, "jobs": None, "page": PageSettings(enabled=False)}
        )

    @field_validator("tiers")
    @classmethod
    def _full_stays(cls, tiers: dict[str, float | str]) -> dict[str, float | str]:
        if tiers.get("full", 1.0) != 1.0 or AUTO in tiers:
            raise ValueError("full is always 1.0, and auto is no name for a tier")
        return {"full": 1.0} | tiers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for detail, meaning in self.detail.items():
            if isinstance(meaning, str) and meaning != AUTO and meaning not in self.tiers:
                raise ValueError(f"detail.{detail} is {meaning!r}, which is no tier of [tiers]")
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two of [[keys]] have the same {what}")
        for key in self.keys:
            low = key.budget.minimum or self.budget.minimum or 0.0
            high = key.budget.maximum or self.budget.maximum or 1.0
            default = key.budget.default
            if low > high or (isinstance(default, float) and not low <= default <= high):
                raise ValueError(
                    f"the budget of key {key.name} does not fit: what it leaves out is taken from"
                    f" [budget], which makes {low} to {high}"
                )
        asks = [self.budget.default, *self.detail.values()]
        if self.elastic is None and AUTO in [*asks, *(key.budget.default for key in self.keys)]:
            raise ValueError('"auto" is asked for, and there is no [elastic]; add it')
        return self


def check_reuse(settings: ServerSettings, *, caches_prefixes: bool) -> None:
    """Refuse a default that an engine without prefix caching cannot meet; raises ConfigurationError."""
    wanting = _wanting(settings, "reuse")
    if wanting and not caches_prefixes:
        raise ConfigurationError(
            f"reuse is true in the settings ({', '.join(wanting)}), and the engine runs without prefix"
            " caching; leave it out, or start without --no-enable-prefix-caching"
        )


def check_adapt(settings: ServerSettings, *, has_family: bool) -> None:
    """Refuse a default that needs a family of schedules where there is none; raises ConfigurationError."""
    wanting = _wanting(settings, "adapt")
    if wanting and not has_family:
        raise ConfigurationError(
            f"adapt is true in the settings ({', '.join(wanting)}), and the schedule folder has no"
            " adaptive/family.json; leave it out, or make one with vtr search family"
        )


def _wanting(settings: ServerSettings, name: Literal["reuse", "adapt"]) -> list[str]:
    """The tables that ask for it by default, as a message names them."""
    tables = {"budget": settings.budget} | {f"key {key.name}": key.budget for key in settings.keys}
    return [place for place, table in tables.items() if getattr(table, name)]
