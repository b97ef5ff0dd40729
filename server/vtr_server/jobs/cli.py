"""The command line of the job service: ``vtr search serve``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from vtr_server.http.message_limits import install_protocol
from vtr_server.jobs.app import SEARCH_COMMAND, JobServiceSettings, create_app
from vtr_server.jobs.sources import Sources
from vtr_server.policy.exposure import is_loopback
from vtr_vllm.command_line import Parser, count
from vtr_vllm.errors import ConfigurationError

__all__ = ["main", "parse"]

TOKEN_VARIABLE = "VTR_JOBS_TOKEN"
_STREAMS_END_SECONDS = 3  # at shutdown, what clients watch is cut off after this

_DESCRIPTION = """\
Serve search jobs over HTTP: create, list, watch, cancel and resume them, fetch their schedules and
reports, publish schedules to the folder of a server. Jobs survive a restart."""


def main(arguments: Sequence[str] | None = None, command: Sequence[str] = SEARCH_COMMAND) -> int:
    """Serve until stopped; ``command`` is the search, to which a job's arguments are added."""
    options = parse(arguments)
    try:
        app = create_app(_settings(options, command))
    except (ConfigurationError, OSError) as err:
        print(f"vtr search serve: {err}", file=sys.stderr)
        return 2
    install_protocol()
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        timeout_graceful_shutdown=_STREAMS_END_SECONDS,
    )
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags; like argparse, ends the process with status 2 and a message on a bad one."""
    parser = Parser(prog="vtr search serve", description=_DESCRIPTION)
    add = parser.add_argument
    add("--root", type=Path, default=Path("jobs"), help="folder of the jobs (default: jobs)")
    add("--data-root", type=Path, default=Path("data"), help="folder of data files (default: data)")
    add("--model-root", type=Path, help="folder whose folders may be named as models")
    add(
        "--models",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="allowed models beside `demo` and `photo`",
    )
    add("--servers", nargs="+", default=[], metavar="URL", help="servers that a job may search on")
    add(
        "--memory-share",
        type=_share,
        metavar="SHARE",
        help="of a device's memory, for an engine of a job (default: as vLLM does)",
    )
    add("--publish", type=Path, metavar="FOLDER", help="folder of schedules that a server watches")
    add("--workers", type=count, default=1, help="searches at once (default: 1)")
    add("--grace-seconds", type=float, default=30.0, help="from SIGTERM to SIGKILL (default: 30)")
    add(
        "--host", default="127.0.0.1", help="beyond loopback a token is needed (default: 127.0.0.1)"
    )
    add("--port", type=int, default=8100, help="(default: 8100)")
    add(
        "--token",
        default=os.environ.get(TOKEN_VARIABLE) or None,
        help=f"bearer token of every request; better given as {TOKEN_VARIABLE}: ps shows flags",
    )
    options = parser.parse_args(arguments)
    if options.token is not None and not options.token.strip():
        parser.error("--token is empty; give at least one character")
    if options.token is None and not is_loopback(options.host):
        parser.error(
            f"--host {options.host} is beyond this machine: give --token or {TOKEN_VARIABLE}, or"
            " bind 127.0.0.1"
        )
    return options


def _settings(options: argparse.Namespace, command: Sequence[str]) -> JobServiceSettings:
    if options.publish is not None:
        options.publish.mkdir(parents=True, exist_ok=True)
    return JobServiceSettings(
        root=options.root,
        sources=Sources(
            data_root=options.data_root,
            model_root=options.model_root,
            models=tuple(options.models),
            servers=tuple(options.servers),
            memory_share=options.memory_share,
            workers=options.workers,
        ),
        publish=options.publish,
        token=options.token,
        grace_seconds=options.grace_seconds,
        command=tuple(command),
    )


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share
