"""``vtr batch``: a file of requests through vLLM's batch runner, with budgets.

vLLM's runner (``vllm run-batch``) parses each line into its own request classes and calls its own
handlers, past every endpoint plugin. The form of the files, the flags and the engine stay vLLM's
here; but a line goes to the server's routes, in this process and without a socket. So a line may ask
in every way that a request may, and its answer carries the same facts.
"""

import asyncio
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client, init_app_state
from vllm.entrypoints.launchers.run_batch import (
    BatchProgressTracker,
    BatchRequestOutput,
    BatchResponseData,
    make_arg_parser,
    start_http_server,
    upload_data,
    validate_run_batch_args,
)
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.plugins.endpoint_plugins.interface import attach_endpoint_plugins
from vllm.usage.usage_lib import UsageContext
from vllm.utils import random_uuid

from vtr_server.gate.context import Caller, RequestContext
from vtr_server.http.errors import error_body
from vtr_server.vllm_api.batch_files import BatchInput, BatchOutput, Line
from vtr_server.vllm_api.launch import Parser, check
from vtr_vllm.errors import ConfigurationError, EngineNotReady, VTRError

__all__ = ["answer_lines", "main"]

WAVES = 2
"""Lines under way for each place in the engine's batch. vLLM's runner starts all at once, which
decodes every image of the file before the first answer."""


class _Response(BatchResponseData):
    """vLLM's, with the body as the route gave it: vLLM's own classes know no ``vtr``."""

    body: dict[str, Any] | None = None


class _Output(BatchRequestOutput):
    response: _Response | None


def main(arguments: Sequence[str]) -> int:
    """Run the file that ``arguments`` name; 0 once every line has its answer or its error."""
    cli_env_setup()
    parser = make_arg_parser(Parser(prog="vtr batch", description=__doc__))
    args = parser.parse_args(list(arguments))
    configure_logging_from_args(args)
    with ExitStack() as files:
        try:
            asked, output = asyncio.run(_open(args, files))
            check(args)
        except VTRError as err:
            print(f"vtr batch: {err}", file=sys.stderr)
            return 2
        if args.enable_metrics:
            start_http_server(port=args.port, addr=args.host or "127.0.0.1")
        try:
            asyncio.run(_run(args, asked, output))
        except (EngineNotReady, OSError) as err:
            print(f"vtr batch: {err}", file=sys.stderr)
            print("vtr batch: stopped; the same command goes on from here", file=sys.stderr)
            return 1
        except VTRError as err:  # what only the engine tells: the settings do not go with it
            print(f"vtr batch: {err}", file=sys.stderr)
            return 2
    return 0


async def _open(args: Namespace, files: ExitStack) -> tuple[BatchInput, BatchOutput]:
    """Look at the files before the engine starts; raises ConfigurationError.

    An address is read into a file that is gone at the end, and written likewise.
    """
    given, wanted = args.input_file, args.output_file
    if _is_address(given):
        copy = _temporary(args, files, "input.jsonl")
        try:
            async with aiohttp.ClientSession() as session, session.get(given) as answer:
                answer.raise_for_status()
                with copy.open("wb") as file:
                    async for part in answer.content.iter_chunked(1 << 20):
                        file.write(part)
        except (OSError, aiohttp.ClientError) as err:
            raise ConfigurationError(f"-i {given} cannot be read ({err})") from err
        given = str(copy)
    asked = BatchInput.open(given, files)
    path = _temporary(args, files, "output.jsonl") if _is_address(wanted) else Path(wanted)
    return asked, BatchOutput(path, asked.keys, files)


def _temporary(args: Namespace, files: ExitStack, name: str) -> Path:
    """A file that is gone with ``files``."""
    return Path(files.enter_context(TemporaryDirectory(dir=args.output_tmp_dir)), name)


def _is_address(path: str) -> bool:
    return path.startswith(("http://", "https://"))


async def _run(args: Namespace, asked: BatchInput, output: BatchOutput) -> None:
    """Start the engine, run all lines that have no answer yet, put the output in order."""
    known = len(output.answered)
    if known:
        print(f"vtr batch: {known} lines are answered in {args.output_file}", file=sys.stderr)
    if known < len(asked.keys):
        validate_run_batch_args(args)
        async with _client(args) as (client, places, is_dead):
            await answer_lines(client, asked, output, places, is_dead)
    output.finish(asked.keys)
    if _is_address(args.output_file):
        await upload_data(args.output_file, str(output.path), from_file=True)
    print(
        f"vtr batch: {len(asked.keys)} lines, {len(asked.keys) - output.failed} answered,"
        f" {output.failed} refused or failed; {args.output_file}",
        file=sys.stderr,
    )


@asynccontextmanager
async def _client(
    args: Namespace,
) -> AsyncIterator[tuple[httpx.AsyncClient, int, Callable[[], bool]]]:
    """A client of an engine's routes, how many requests it should have, whether the engine died."""
    context = UsageContext.OPENAI_BATCH_RUNNER
    async with build_async_engine_client(args, usage_context=context) as engine:
        routes = _as_operator(await _app(engine, args))
        transport = httpx.ASGITransport(routes, raise_app_exceptions=False)
        places = WAVES * engine.vllm_config.scheduler_config.max_num_seqs
        async with httpx.AsyncClient(transport=transport, base_url="http://batch") as client:
            yield client, places, lambda: bool(engine.errored)


async def _app(engine: Any, args: Namespace) -> FastAPI:
    """The routes of the endpoint plugins on an engine, as vLLM's server puts them in place."""
    tasks = await engine.get_supported_tasks()
    app = FastAPI()
    args.host = "127.0.0.1"  # no socket: nobody comes from outside
    app.state.args = args
    app.state.vtr_batch = True
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
    client: httpx.AsyncClient,
    asked: BatchInput,
    output: BatchOutput,
    places: int,
    is_dead: Callable[[], bool] = lambda: False,
) -> None:
    """Write the output of every line that has none yet, at most ``places`` under way at once.

    Raises EngineNotReady once the engine is dead: what it did not answer is written nowhere, and
    asked again by the next run. OSError of the output passes through.
    """
    tracker = BatchProgressTracker()
    for _ in range(len(asked.keys) - len(output.answered)):
        tracker.submitted()
    lines = asked.lines(frozenset(output.answered))

    async def work() -> None:
        for line in lines:  # of all workers: each takes the next
            found = await _answer(client, line)
            failed = found.error is not None
            if failed and is_dead():
                raise EngineNotReady("the engine died; its own messages above say why")
            output.write(line.key, found.model_dump_json(), failed)
            tracker.completed()

    with tracker.pbar():
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(places):
                    group.create_task(work())
        except ExceptionGroup as several:
            raise several.exceptions[0] from several


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
        id=line.key,
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
