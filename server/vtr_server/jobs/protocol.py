"""What a client sends and gets: closed models with bounded values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from vtr_vllm.search_options import SearchOptions

__all__ = [
    "FINISHED",
    "BrokenJob",
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

JobId = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
ScheduleName = Annotated[str, Field(min_length=1, max_length=96)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class JobSpec(SearchOptions):
    """One search; a field that is null or left out takes the default of ``vtr search``.

    ``model`` is `demo`, `photo`, a model that the service allows, or a path under its folder of models;
    ``data`` and ``heldout`` are paths under its folder of data.
    """


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


class BrokenJob(_Closed):
    """A job whose file cannot be read: it is not worked off."""

    id: str
    reason: str


class JobList(_Closed):
    """A page of jobs, newest first."""

    data: list[Job]
    has_more: bool
    broken: list[BrokenJob] = Field(
        default_factory=list, description="Jobs whose file cannot be read, on the first page."
    )


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
