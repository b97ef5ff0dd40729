"""What a client sends and gets: closed models with bounded values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = [
    "FINISHED",
    "Job",
    "JobList",
    "JobQuery",
    "JobSpec",
    "PublishRequest",
    "Published",
    "PublishedSchedule",
    "ScheduleList",
    "ScheduleSummary",
    "State",
]

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINISHED = ("done", "failed", "cancelled")

Budget = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
ScheduleName = Annotated[str, Field(min_length=1, max_length=96)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class JobSpec(_Closed):
    """One search; a field that is null or left out takes the default of ``vtr search``."""

    kind: Literal["g-search", "p-sigmoid", "all"]
    model: Text = Field(description="`demo`, a model of --models, or a path under --model-root.")
    data: Text = Field(description="Path of a file under --data-root.")
    budgets: list[Budget] = Field(
        min_length=1, max_length=32, description="Mean keep rates, each in (0, 1), all different."
    )
    seed: int = Field(default=0, ge=0, lt=2**32)
    tolerance: float | None = Field(
        default=None, ge=0, le=100, description="Share of accuracy, or nats of divergence."
    )
    objective: Literal["accuracy", "label-free"] | None = None
    servers: list[Text] = Field(
        default_factory=list, max_length=64, description="Addresses, each one of --servers."
    )
    items: int | None = Field(default=None, ge=1, le=1_000_000)
    heldout: Text | None = Field(default=None, description="Path of a file under --data-root.")

    @field_validator("budgets", "servers")
    @classmethod
    def _all_different(cls, values: list[float] | list[str]) -> list[float] | list[str]:
        if len(set(values)) != len(values):
            raise ValueError("the values must all be different")
        return values


class Job(_Closed):
    """One search and how it stands; ``job.json`` of its folder, and the answer of most routes."""

    id: JobId = Field(description="Ids sort by creation.")
    created: float = Field(description="Unix seconds.")
    spec: JobSpec
    state: State = "queued"
    cancel_requested: bool = Field(
        default=False, description="With `running`: the process has been told to stop."
    )
    attempts: int = Field(default=0, description="How often a process has been started.")
    exit: int | None = Field(
        default=None, description="Exit code of the last process that ended by itself."
    )
    reason: str | None = Field(default=None, description="Why the job failed.")


class JobQuery(_Closed):
    """The query of GET /v1/jobs."""

    # a query holds text only, so numbers are read from text
    model_config = ConfigDict(strict=False)

    state: State | None = None
    limit: int = Field(default=50, ge=1, le=200)
    after: JobId | None = Field(default=None, description="Id of the last job of the page before.")


class JobList(_Closed):
    """A page of jobs, newest first."""

    data: list[Job]
    has_more: bool


class ScheduleSummary(_Closed):
    """A schedule that a job has found."""

    name: str
    method: str
    budget: float | None
    mean_keep: float


class ScheduleList(_Closed):
    """What a job has found so far."""

    data: list[ScheduleSummary]


class PublishRequest(_Closed):
    """Which schedules of a job to publish; null means all."""

    schedules: list[ScheduleName] | None = Field(min_length=1, max_length=1000)


class PublishedSchedule(_Closed):
    """A schedule, and the file of the published folder that now holds it."""

    name: str
    file: str


class Published(_Closed):
    """What a publication wrote."""

    data: list[PublishedSchedule]
