"""Every error that VTR raises on purpose.

    VTRError                     500  internal
    ├── RequestError             400  invalid_request       cannot run as asked
    │   ├── InvalidBudget        400  invalid_budget        not a mean keep rate we can meet
    │   ├── UnknownSchedule      400  unknown_schedule      no schedule of that name
    │   ├── UnknownTier          400  unknown_tier          no budget tier of that name
    │   ├── BudgetNotAllowed     403  budget_not_allowed    outside the server's or the key's policy
    │   ├── UnsupportedRequest   400  unsupported_request   a feature that reduction excludes
    │   ├── InvalidMedia         400  invalid_media         an image that does not load
    │   ├── TooManyImages        400  too_many_images       more images than one request may have
    │   ├── PromptTooLong        400  prompt_too_long       does not fit one scheduler step
    │   ├── BodyTooLarge         413  body_too_large        more bytes than a request may have
    │   ├── BodyTimeout          408  body_timeout          the body took too long to arrive
    │   ├── InvalidKey           401  invalid_api_key       no key, or none that we know
    │   ├── Forbidden            403  forbidden             a key without the scope for this route
    │   ├── UnknownModel         404  model_not_found       no model of that name
    │   ├── UnknownJob           404  unknown_job           no search job of that id
    │   └── JobConflict          409  job_conflict          not in the state that a job is in
    ├── ScheduleError            422  invalid_schedule      a malformed schedule
    │   └── GeometryMismatch     422  geometry_mismatch     made for another model
    ├── CalibrationError         422  invalid_calibration   calibration data that cannot be used
    ├── EvaluationFailed         502  evaluation_failed     an engine did not answer the search
    ├── TimeLimitReached         504  time_limit_reached    a search may not run any longer
    ├── EngineNotReady           503  engine_not_ready      up, but without reduction in place
    │   └── EngineDead           503  engine_dead           its process has ended
    ├── RequestTimeout           504  request_timeout       took longer than a request may
    ├── RetryLater               503  retry_later           goes with Retry-After
    │   ├── RateLimited          429  rate_limited          a key's allowance is used up
    │   ├── CallerBusy           429  caller_busy           as many of one caller inside as may be
    │   ├── Overloaded           429  overloaded            as many requests inside as may be
    │   ├── JobsBusy             429  jobs_busy             as many jobs waiting, or watched, as may be
    │   └── Draining             503  draining              the server finishes and takes no more
    └── ConfigurationError       500  configuration         refused at start-up, by name
        └── UnsupportedModel     500  unsupported_model     a model we cannot reduce

``http_status`` is what the server answers with. ``code`` is stable: it is the ``code`` of the
OpenAI error body and the ``reason`` label of the rejection metrics, so renaming one breaks
dashboards. A message gives the value, the allowed range and the next step.
"""

import reprlib
from typing import ClassVar

__all__ = [
    "BodyTimeout",
    "BodyTooLarge",
    "BudgetNotAllowed",
    "CalibrationError",
    "CallerBusy",
    "ConfigurationError",
    "Draining",
    "EngineDead",
    "EngineNotReady",
    "EvaluationFailed",
    "Forbidden",
    "GeometryMismatch",
    "InvalidBudget",
    "InvalidKey",
    "InvalidMedia",
    "JobConflict",
    "JobsBusy",
    "Overloaded",
    "PromptTooLong",
    "RateLimited",
    "RequestError",
    "RequestTimeout",
    "RetryLater",
    "ScheduleError",
    "TimeLimitReached",
    "TooManyImages",
    "UnknownJob",
    "UnknownModel",
    "UnknownSchedule",
    "UnknownTier",
    "UnsupportedModel",
    "UnsupportedRequest",
    "VTRError",
    "show",
]


def show(value: object) -> str:
    """A short ``repr`` for a message: client input may be of any size."""
    return reprlib.repr(value)


class VTRError(Exception):
    """The root of the tree; raised itself only for a broken invariant of ours."""

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"


class RequestError(VTRError, ValueError):
    """A request that cannot run as asked; the client can change it.

    Also a ValueError: vLLM's own front ends answer those with 400.
    """

    http_status = 400
    code = "invalid_request"


class InvalidBudget(RequestError):
    """A budget that is no number in (0, 1], or that a schedule form cannot meet."""

    code = "invalid_budget"


class UnknownSchedule(RequestError):
    """A schedule name that is neither stored nor the name of a built-in form."""

    code = "unknown_schedule"


class UnknownTier(RequestError):
    """A budget tier that this server does not offer."""

    code = "unknown_tier"


class BudgetNotAllowed(RequestError):
    """A budget outside what the server, or the key that the request came with, allows."""

    http_status = 403
    code = "budget_not_allowed"


class UnsupportedRequest(RequestError):
    """A reduced request that asks for more: prompt_logprobs, beam search, an image at the very end."""

    code = "unsupported_request"


class InvalidMedia(RequestError):
    """An image that cannot be fetched or decoded."""

    code = "invalid_media"


class TooManyImages(RequestError):
    """More images than one request may have."""

    code = "too_many_images"


class PromptTooLong(RequestError):
    """The range from the first vision token to the prompt's end exceeds one scheduler step."""

    code = "prompt_too_long"


class BodyTooLarge(RequestError):
    """A request body of more bytes than the server takes."""

    http_status = 413
    code = "body_too_large"


class BodyTimeout(RequestError):
    """A request body that took too long to arrive."""

    http_status = 408
    code = "body_timeout"


class InvalidKey(RequestError):
    """No API key where one is needed, or one that the server does not know."""

    http_status = 401
    code = "invalid_api_key"


class Forbidden(RequestError):
    """An API key whose scopes do not cover the route."""

    http_status = 403
    code = "forbidden"


class UnknownModel(RequestError):
    """A name, or a name with an alias, that is no model of this server's. The code is OpenAI's."""

    http_status = 404
    code = "model_not_found"


class UnknownJob(RequestError):
    """A job id that the job service does not know."""

    http_status = 404
    code = "unknown_job"


class JobConflict(RequestError):
    """Something that a job's state, or the folder that it is published to, does not allow now."""

    http_status = 409
    code = "job_conflict"


class ScheduleError(VTRError):
    """A schedule that is malformed, or that does not fit the model."""

    http_status = 422
    code = "invalid_schedule"


class GeometryMismatch(ScheduleError):
    """A schedule that was made for a model of another geometry."""

    code = "geometry_mismatch"


class CalibrationError(VTRError):
    """Calibration data that cannot be used: a faulty line, an overlap, nothing to convert."""

    http_status = 422
    code = "invalid_calibration"


class EvaluationFailed(VTRError):
    """An engine or a fleet of servers that did not answer what the search asked."""

    http_status = 502
    code = "evaluation_failed"


class TimeLimitReached(VTRError):
    """A search is at the end of its time; what it found until then is written."""

    http_status = 504
    code = "time_limit_reached"


class EngineNotReady(VTRError):
    """The engine runs, but not with reduction in place: nothing is served unreduced in silence."""

    http_status = 503
    code = "engine_not_ready"


class EngineDead(EngineNotReady):
    """The engine's process has ended, and with it soon the server: a supervisor starts it again."""

    code = "engine_dead"


class RequestTimeout(VTRError):
    """A request that took longer than the server allows; its work was aborted."""

    http_status = 504
    code = "request_timeout"


class RetryLater(VTRError):
    """Refused for now: the same request may pass after ``retry_after`` seconds."""

    http_status = 503
    code = "retry_later"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = max(1, retry_after)
        """Whole seconds, for the Retry-After header."""


class RateLimited(RetryLater):
    """An allowance per minute, of requests or of vision tokens, that is used up."""

    http_status = 429
    code = "rate_limited"


class CallerBusy(RetryLater):
    """As many requests of one caller inside, arriving, or decoding images, as it may have; others are let in."""

    http_status = 429
    code = "caller_busy"


class Overloaded(RetryLater):
    """As many requests inside, or waiting, as the server takes."""

    http_status = 429
    code = "overloaded"


class JobsBusy(RetryLater):
    """As many search jobs wait, or event streams are open, as may; generating goes on."""

    http_status = 429
    code = "jobs_busy"


class Draining(RetryLater):
    """The server finishes what it has and takes nothing new."""

    code = "draining"


class ConfigurationError(VTRError):
    """An engine or server setting that we refuse at start-up, by name."""

    code = "configuration"


class UnsupportedModel(ConfigurationError):
    """A model whose structure does not allow layer-wise reduction."""

    code = "unsupported_model"
