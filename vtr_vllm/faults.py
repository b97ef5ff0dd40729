"""What pydantic finds wrong, in one line of ours."""

from collections.abc import Sequence
from typing import Any, Protocol

from vtr_vllm.errors import show

__all__ = ["first_fault"]


class _Faulty(Protocol):
    """pydantic's ValidationError, or FastAPI's RequestValidationError."""

    def errors(self) -> Sequence[Any]: ...


def first_fault(err: _Faulty, *within: str, given: bool = False) -> str:
    """The first thing that is wrong, and its place, which begins with ``within``.

    ``given``: and what stands there; not for what may hold a secret.
    """
    fault = err.errors()[0]
    place = ".".join(map(str, (*within, *fault["loc"])))
    message = fault["msg"].removeprefix("Value error, ")
    said = f"{place}: {message}" if place else message
    return f"{said}; got {show(fault['input'])}" if given else said
