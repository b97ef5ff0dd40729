"""``vtr batch``: a file of requests through vLLM's batch runner, with budgets.

vLLM's runner (``vllm run-batch``) parses each line into its own request classes and calls its own
handlers, past every endpoint plugin. The files, the flags, the engine and the lines of the output
stay vLLM's here; but a line goes to the server's routes, in this process and without a socket. So
a line may ask in every way that a request may, and its answer carries the same facts.
"""

import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import aiohttp
import httpx
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client, init_app_state
from vllm.entrypoints.launchers.run_batch import (
    BatchProgressTracker,
    BatchRequestOutput,
    BatchResponseData,
    make_arg_parser,
    read_file,
    start_http_server,
    validate_run_batch_args,
    write_file,
)
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.plugins.endpoint_plugins.interface import attach_endpoint_plugins
from vllm.usage.usage_lib import UsageContext
from vllm.utils import random_uuid
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vtr_server.gate.context import Caller, RequestContext
from vtr_server.http.errors import error_body
from vtr_vllm.errors import ConfigurationError, RequestError, VTRError
from vtr_vllm.schedules.strict_json import show

__all__ = ["Line", "answer_lines", "main", "read_lines"]

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
WAVES = 2
"""Lines under way for each place in the engine's batch. vLLM's runner starts all at once, which
decodes every image of the file before the first answer."""


class _Fields(BaseModel):
    """A line as OpenAI's batch format has it."""

    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    body: dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One request of the file, or why it is none."""

    custom_id: str
    url: str = ""
    body: bytes = b""
    error: RequestError | None = None


class _Response(BatchResponseData):
    """vLLM's, with the body as the route gave it: vLLM's own classes know no ``vtr``."""

    body: dict[str, Any] | None = None


class _Output(BatchRequestOutput):
    response: _Response | None


def main(arguments: Sequence[str]) -> int:
    """Run the file that ``arguments`` name; 0 once every line has its answer or its error."""
    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="vtr batch", description=__doc__))
    args = parser.parse_args(list(arguments))
    configure_logging_from_args(args)
    try:
        lines = asyncio.run(_read(args))
    except ConfigurationError as err:
        print(f"vtr batch: {err}", file=sys.stderr)
        return 2
    if args.enable_metrics:
        start_http_server(port=args.port, addr=args.host or "127.0.0.1")
    asyncio.run(_run(args, lines))
    return 0


async def _read(args: Namespace) -> list[Line]:
    """Read the file before the engine starts, and see that the answers have a place to go.

    Raises ConfigurationError.
    """
    output = args.output_file
    if "://" not in output and not Path(output).absolute().parent.is_dir():
        raise ConfigurationError(f"-o {output}: there is no such folder; create it first")
    try:
        text = await read_file(args.input_file)
    except (OSError, UnicodeDecodeError, aiohttp.ClientError) as err:
        raise ConfigurationError(
            f"-i {args.input_file} cannot be read ({err}); name a UTF-8 file with one JSON request"
            " per line"
        ) from err
    return read_lines(text)


def read_lines(text: str) -> list[Line]:
    """The requests of a batch file; empty lines are left out, bad ones become their error."""
    return [
        _read_line(number, line)
        for number, line in enumerate(text.split("\n"), 1)
        if line and not line.isspace()
    ]


def _read_line(number: int, text: str) -> Line:
    try:
        found = _Fields.model_validate_json(text)
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        return Line(
            _custom_id(text) or f"line-{number}",
            error=RequestError(
                f"line {number} of the batch file: {place}: {first['msg']}, got"
                f" {show(first['input'])}; a line is one JSON object with custom_id, method POST,"
                f" url (one of {', '.join(URLS)}) and body"
            ),
        )
    if found.body.get("stream"):
        return Line(
            found.custom_id,
            error=RequestError(
                f"line {number} of the batch file: stream is {show(found.body['stream'])}; a batch"
                " has no streams: leave stream out"
            ),
        )
    return Line(found.custom_id, found.url, json.dumps(found.body).encode())


def _custom_id(text: str) -> str | None:
    """The id of a line that is otherwise bad, so that its error can be told from the others."""
    try:
        given = json.loads(text)["custom_id"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return given if isinstance(given, str) else None


async def _run(args: Namespace, lines: Sequence[Line]) -> None:
    """Start the engine, run all lines, write the output file."""
    validate_run_batch_args(args)
    context = UsageContext.OPENAI_BATCH_RUNNER
    async with build_async_engine_client(args, usage_context=context) as engine:
        routes = _as_operator(await _app(engine, args))
        transport = httpx.ASGITransport(routes, raise_app_exceptions=False)
        places = WAVES * engine.vllm_config.scheduler_config.max_num_seqs
        async with httpx.AsyncClient(transport=transport, base_url="http://batch") as client:
            outputs = await answer_lines(client, lines, places)
        await write_file(args.output_file, outputs, args.output_tmp_dir)
    failed = sum(output.error is not None for output in outputs)
    print(
        f"vtr batch: {len(outputs)} lines, {len(outputs) - failed} answered, {failed} refused or"
        f" failed; {args.output_file}",
        file=sys.stderr,
    )


async def _app(engine: Any, args: Namespace) -> FastAPI:
    """The routes of the endpoint plugins on an engine, as vLLM's server puts them in place."""
    tasks = await engine.get_supported_tasks()
    app = FastAPI()
    app.state.args = args
    attach_endpoint_plugins(app, tasks)
    app.user_middleware.clear()  # the gate: keys, allowances and time limits of callers from outside
    init_exception_handler(app)
    await init_app_state(engine, app.state, args, tasks)
    return app


def _as_operator(app: ASGIApp) -> ASGIApp:
    """What the gate would tell the routes: the caller has no key, and policy holds for all."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        context = RequestContext(Caller(None, "batch"))
        await app(context.put_into(scope), receive, send)

    return run


async def answer_lines(
    client: httpx.AsyncClient, lines: Sequence[Line], places: int
) -> list[BatchRequestOutput]:
    """The outputs in the order of the lines, at most ``places`` of them under way at once."""
    free, tracker = asyncio.Semaphore(places), BatchProgressTracker()
    for _ in lines:
        tracker.submitted()

    async def one(line: Line) -> BatchRequestOutput:
        async with free:
            output = await _answer(client, line)
        tracker.completed()
        return output

    with tracker.pbar():
        return await asyncio.gather(*map(one, lines))


async def _answer(client: httpx.AsyncClient, line: Line) -> BatchRequestOutput:
    """One line's output, whatever becomes of it."""
    request_id = f"vllm-batch-{random_uuid()}"
    if line.error is not None:
        status, answered = line.error.http_status, error_body(line.error)
    else:
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        answer = await client.post(line.url, content=line.body, headers=headers)
        status, answered = answer.status_code, _json(answer)
    good = status == HTTPStatus.OK
    return _Output(
        id=f"vllm-{random_uuid()}",
        custom_id=line.custom_id,
        response=_Response(
            status_code=status, request_id=request_id, body=answered if good else None
        ),
        error=None if good else answered,
    )


def _json(answer: httpx.Response) -> dict[str, Any]:
    """The answer's object; an error of ours where the app broke down without one."""
    try:
        body: dict[str, Any] = answer.json()
    except ValueError:
        return error_body(VTRError(f"the server failed with status {answer.status_code}"))
    return body
