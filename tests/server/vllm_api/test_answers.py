"""What becomes of an error of vLLM's."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import pytest
from pydantic import BaseModel
from vllm.v1.engine.exceptions import EngineGenerateError

from vtr_server.vllm_api.answers import serve
from vtr_vllm.errors import InvalidBudget


class Body(BaseModel):
    """Of no matter."""


def failing(cause: Exception) -> Any:
    async def create(_: Any, __: Any) -> NoReturn:
        raise EngineGenerateError from cause

    return create


def served(cause: Exception) -> None:
    asyncio.run(serve(failing(cause), Body(), None))  # type: ignore[arg-type]


def test_a_refusal_of_ours_at_admission_is_what_is_raised() -> None:
    with pytest.raises(InvalidBudget, match="too low"):
        served(InvalidBudget("too low"))


def test_what_made_the_engine_s_front_end_fail_is_not_lost() -> None:
    """It was its own cause once, and the log could say nothing."""
    with pytest.raises(EngineGenerateError) as raised:
        served(ArithmeticError("who knows"))
    assert isinstance(raised.value.__cause__, ArithmeticError)
