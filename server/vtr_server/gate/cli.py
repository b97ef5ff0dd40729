"""``vtr keys``: make an API key and what the settings file holds of it."""

import sys
from collections.abc import Sequence

from pydantic import ValidationError

from vtr_server.gate.keys import hash_key, new_key
from vtr_server.policy.settings import KeySettings, Scope
from vtr_vllm.command_line import Parser

__all__ = ["main"]

_SCOPES: tuple[Scope, ...] = ("generate", "metrics", "admin", "jobs")


def main(arguments: Sequence[str]) -> int:
    """Run ``vtr keys ARGUMENTS``; returns the exit code."""
    parser = Parser(prog="vtr keys", description="API keys of a server.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="print a fresh key, and the table for the settings file")
    new.add_argument("name", metavar="NAME", help="whose it is: a-z, 0-9 and -; a label of metrics")
    new.add_argument(
        "--scope",
        action="append",
        choices=_SCOPES,
        help="what it may be used for; may be given several times (default: generate)",
    )
    options = parser.parse_args(list(arguments))
    key = new_key()
    scopes = list(dict.fromkeys(options.scope or ["generate"]))
    try:
        table = KeySettings(name=options.name, sha256=hash_key(key.encode()), scopes=tuple(scopes))
    except ValidationError:
        print(f"vtr keys: NAME {options.name!r} must be 1 to 32 of a-z, 0-9, -", file=sys.stderr)
        return 2
    print(f"{key}\n", flush=True)
    print("# The key above is shown once. For the settings file:")
    print("[[keys]]")
    print(f'name = "{table.name}"')
    print(f'sha256 = "{table.sha256}"')
    print("scopes = [" + ", ".join(f'"{scope}"' for scope in table.scopes) + "]")
    return 0
