"""``vtr settings check FILE``: what a settings file comes to, before a server is started with it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vtr_server.policy.settings import ServerSettings
from vtr_vllm.command_line import Parser, refuse
from vtr_vllm.errors import VTRError
from vtr_vllm.preflight import check_model, check_schedules, known_geometry

__all__ = ["as_toml", "main"]


def main(arguments: Sequence[str]) -> int:
    """Run ``vtr settings ARGUMENTS``; returns the exit code: 2 with one line for a bad file."""
    parser = Parser(prog="vtr settings", description="The settings file of a server.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check", help="check a file, and print all that it comes to as TOML"
    )
    check.add_argument("file", metavar="FILE", type=Path, help="the file of vtr serve --settings")
    check.add_argument(
        "--schedules", metavar="FOLDER", type=Path, help="check this folder of schedules as well"
    )
    check.add_argument("--model", metavar="FOLDER", help="a model that the schedules must fit")
    options = parser.parse_args(list(arguments))
    try:
        settings = ServerSettings.load(options.file)
        if options.model is not None:
            check_model(options.model, (), {})
        geometry = None if options.model is None else known_geometry(options.model, ())
        check_schedules(options.schedules, geometry, may_be_empty=settings.jobs is not None)
    except VTRError as err:
        refuse("vtr settings check", err)
    print(as_toml(settings))
    return 0


def as_toml(settings: ServerSettings) -> str:
    """Every setting in force, those marked that the file leaves out; hashes of keys are not shown."""
    lines = ["# In force; what is marked `default` is not in the file."]
    for name in type(settings).model_fields:
        if name == "keys":
            continue
        value, given = getattr(settings, name), name in settings.model_fields_set
        if value is None:
            lines.append(f"# {name}: off")
        elif isinstance(value, BaseModel):
            lines += _fields(value, f"{name}.")
        elif value:
            lines += [_line(f"{name}.{key}", each, given) for key, each in value.items()]
    for key in settings.keys:
        lines += ["", "[[keys]]", *_fields(key, "", without="sha256")]
    return "\n".join(lines)


def _fields(table: BaseModel, prefix: str, without: str = "") -> Iterator[str]:
    for name in type(table).model_fields:
        value = getattr(table, name)
        if name == without:
            yield f"# {prefix}{name}: not shown"
        elif isinstance(value, BaseModel):
            yield from _fields(value, f"{prefix}{name}.")
        elif value is None:
            yield f"# {prefix}{name}: none"
        else:
            yield _line(f"{prefix}{name}", value, name in table.model_fields_set)


def _line(place: str, value: Any, given: bool) -> str:
    plain = (
        list(value)
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, Path)
        else value
    )
    # JSON's texts, numbers, lists and booleans are TOML's too
    return f"{place} = {json.dumps(plain)}{'' if given else '  # default'}"
