"""The adapter to vLLM, with stand-ins for its client and handlers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from pydantic import BaseModel
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from vtr_server.vllm_api.engine import (
    Admitted,
    ChatRequest,
    Chunks,
    Engine,
    ResponsesRequest,
    Whole,
    collect,
    first_token,
)
from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.errors import EngineDead, EngineNotReady, RequestError, UnsupportedRequest

TEXT_CONFIG = {
    "num_hidden_layers": 12,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 2,
}
IN_PLACE = {"loaded": True, "reason": None, "runner": "v1", "layers": 12, "bands": 6}


class Client:
    """vLLM's engine client, as far as the server uses it."""

    def __init__(self, *answers: Any) -> None:
        text_config = SimpleNamespace(**TEXT_CONFIG)
        self.input_processor = SimpleNamespace()
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(
                hf_text_config=text_config, model=str(CHECKPOINT), revision=None
            ),
            additional_config={},
            cache_config=SimpleNamespace(
                enable_prefix_caching=True, num_gpu_blocks=60, block_size=16
            ),
        )
        self.answers = list(answers)
        self.calls = 0
        self.dead = False

    async def check_health(self) -> None:
        if self.dead:
            raise EngineDeadError

    async def generate(self, *outputs: str) -> AsyncIterator[str]:
        for output in outputs:
            yield output

    async def collective_rpc(self, method: str) -> Any:
        assert method == "vtr_status"
        self.calls += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Handler:
    """vLLM's chat handler: streams what ``produce`` yields, and its failures as events."""

    def __init__(self, produce: Callable[[], AsyncIterator[str]]) -> None:
        self.produce = produce

    create_error_response = staticmethod(OpenAIServingChat.create_error_response)
    create_streaming_error_response = OpenAIServingChat.create_streaming_error_response

    async def create_chat_completion(self, request: ChatRequest, raw_request: Any) -> Any:
        async def events() -> AsyncIterator[str]:
            try:
                async for event in self.produce():
                    yield event
            except Exception as err:  # noqa: BLE001  as vLLM does
                yield f"data: {self.create_streaming_error_response(err)}\n\n"
            yield "data: [DONE]\n\n"

        return events()


REQUEST: Any = SimpleNamespace(
    headers={}, app=SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace()))
)


def engine_of(client: Client, handler: Any = None) -> Engine:
    return Engine(
        client, SimpleNamespace(openai_serving_chat=handler, openai_serving_completion=None)
    )


def wait(awaitable: Awaitable[Any]) -> Any:
    async def run() -> Any:
        return await awaitable

    return asyncio.run(run())


def test_the_engine_says_whose_weights_it_runs() -> None:
    assert engine_of(Client()).checkpoint == checkpoint_digest(str(CHECKPOINT))


def test_that_reduction_is_in_place_is_remembered() -> None:
    client = Client([IN_PLACE])
    engine = engine_of(client)
    assert [wait(engine.why_not_in_place()) for _ in range(3)] == [None] * 3
    assert client.calls == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([], "no worker"),
        ([IN_PLACE, {"loaded": False, "reason": "not reducible"}], "worker 1: not reducible"),
        ([{"loaded": False, "reason": None}], "not loaded"),
        ([IN_PLACE | {"layers": 11}], "11 of 12 layers"),
        (Exception("no such method"), "--worker-cls"),
    ],
)
def test_that_it_is_not_is_asked_anew(answer: Any, reason: str) -> None:
    engine = engine_of(Client(answer, [IN_PLACE]))
    assert reason in (wait(engine.why_not_in_place()) or "")
    assert wait(engine.why_not_in_place()) is None


def test_a_dead_engine_is_told_from_one_without_the_plugin() -> None:
    engine = engine_of(Client(EngineDeadError()))
    assert isinstance(wait(engine.why_unhealthy()), EngineDead)
    with pytest.raises(EngineDead, match="EngineCore"):
        wait(engine_of(Client(EngineDeadError())).why_not_in_place())


def test_a_dead_engine_is_unhealthy_although_the_plugin_was_in_place() -> None:
    client = Client([IN_PLACE])
    engine = engine_of(client)
    assert wait(engine.why_unhealthy()) is None
    client.dead = True
    assert wait(engine.why_unhealthy())


async def _stream(engine: Engine) -> list[str]:
    answer = await engine.chat(ChatRequest(messages=[]), REQUEST)
    assert isinstance(answer, Chunks)
    return [event async for event in answer.events]


def _refused_at_admission() -> EngineGenerateError:
    err = EngineGenerateError()
    err.__cause__ = UnsupportedRequest("no")
    return err


def test_a_stream_passes_unchanged() -> None:
    async def produce() -> AsyncIterator[str]:
        for text in ("a", "b"):
            yield text

    engine = engine_of(Client(), Handler(produce))
    assert wait(_stream(engine)) == ["a", "b", "data: [DONE]\n\n"]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (_refused_at_admission(), UnsupportedRequest),
        (UnsupportedRequest("no"), UnsupportedRequest),
        (ValueError("of vLLM's"), ValueError),
        (EngineDeadError(), EngineNotReady),
    ],
)
def test_what_fails_before_the_first_chunk_is_raised(
    failure: Exception, kind: type[Exception]
) -> None:
    async def produce() -> AsyncIterator[str]:
        raise failure
        yield ""

    with pytest.raises(kind):
        wait(_stream(engine_of(Client(), Handler(produce))))


def test_what_fails_later_is_an_event_in_our_form() -> None:
    with collect() as admitted:

        async def produce() -> AsyncIterator[str]:
            admitted.append(Admitted("1", None, 0, 1))
            yield "a"
            raise _refused_at_admission()

        events = wait(_stream(engine_of(Client(), Handler(produce))))
    assert events[0] == "a"
    error = json.loads(events[1].removeprefix("data: "))["error"]
    assert (error["code"], error["message"]) == ("unsupported_request", "no")


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (_refused_at_admission(), UnsupportedRequest),
        (EngineDeadError(), EngineNotReady),
        (AssertionError("Failed to apply prompt replacement for image"), RequestError),
        (AttributeError("'NoneType' object has no attribute 'split'"), RequestError),
        (OSError("no fault of the body"), OSError),
    ],
)
def test_a_refusal_without_a_stream_is_raised_too(
    failure: Exception, kind: type[Exception]
) -> None:
    class Refusing(Handler):
        async def create_chat_completion(self, request: ChatRequest, raw_request: Any) -> Whole:
            raise failure

    engine = engine_of(Client(), Refusing(produce=lambda: None))  # type: ignore[arg-type, return-value]
    with pytest.raises(kind):
        wait(engine.chat(ChatRequest(messages=[]), REQUEST))


class ResponsesHandler:
    """vLLM's handler of the Responses API, which lets the failures of a stream through."""

    def __init__(self, good: int) -> None:
        self.good = good

    async def create_responses(self, request: ResponsesRequest, raw_request: Any) -> Any:
        async def events() -> AsyncIterator[Event]:
            for number in range(self.good):
                yield Event(type="response.output_text.delta", sequence_number=number)
            raise EngineDeadError

        return events()


class Event(BaseModel):
    type: str
    sequence_number: int


async def _responses(engine: Engine) -> list[str]:
    answer = await engine.respond(ResponsesRequest(input="a"), REQUEST)
    assert isinstance(answer, Chunks)
    return [event async for event in answer.events]


def test_a_stream_of_responses_says_that_the_engine_died() -> None:
    engine = engine_of(Client())
    engine._state.openai_serving_responses = ResponsesHandler(0)
    with pytest.raises(EngineNotReady):
        wait(_responses(engine))
    engine._state.openai_serving_responses = ResponsesHandler(2)
    with collect() as admitted:
        admitted.append(Admitted("1", None, 0, 1))
        events = wait(_responses(engine))
    assert len(events) == 3
    head, data = events[2].split("\n", 1)
    error = json.loads(data.removeprefix("data: "))
    assert (head, error["type"], error["code"]) == ("event: error", "error", "engine_dead")
    assert error["sequence_number"] == 2


def test_the_first_output_of_what_is_begun_inside_is_told_once() -> None:
    client = Client()
    engine_of(client)
    engine_of(client)  # tapped once
    told = []

    async def run() -> list[str]:
        with first_token(lambda: told.append("first")):
            outputs = client.generate("a", "b")
        seen = [await anext(outputs)]
        assert told == ["first"]
        seen += [output async for output in outputs]
        return [*seen, *[output async for output in client.generate("c")]]

    assert wait(run()) == ["a", "b", "c"]
    assert told == ["first"]
