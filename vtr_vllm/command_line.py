"""What our commands have in common: how they read flags, and how they refuse a command line."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = [
    "LAUNCH_VARIABLE",
    "OneLineErrors",
    "Parser",
    "count",
    "is_on",
    "masked",
    "refuse",
    "value_of",
]

USAGE_ERROR = 2

LAUNCH_VARIABLE = "VTR_LAUNCH"
"""Environment variable with the command that ``vtr serve`` becomes, which says it once it is valid."""

_SECRETS = ("--api-key", "--hf-token", "--watermark-config")
"""Flags of vLLM's whose values it leaves out of its log."""


def refuse(command: str, reason: object) -> NoReturn:
    """One line on standard error, and the status of argparse: nothing has been started."""
    print(f"{command}: {' '.join(str(reason).split())}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


class OneLineErrors:
    """A base before argparse's parser: a faulty command line gets one line, not a page of usage."""

    prog: str

    def error(self, message: str) -> NoReturn:
        """End the process."""
        refuse(self.prog, f"{message}; see {self.prog} --help")


class Parser(OneLineErrors, argparse.ArgumentParser):
    """argparse's parser; those of its commands are of this class too."""


def count(text: str) -> int:
    """The type of a flag that is a whole number from 1 on."""
    try:
        value = int(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from err
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag in a command line that somebody else parses; the last one counts.

    Both spellings of vLLM's count, and both forms: ``--a-b V``, ``--a_b=V``. None: not given. Empty:
    given without a value.
    """
    found = None
    for index, part in enumerate(arguments):
        name, equals, value = part.partition("=")
        if name.replace("_", "-") != flag or not part.startswith("--"):
            continue
        following = arguments[index + 1 : index + 2]
        found = value if equals else next((v for v in following if not v.startswith("--")), "")
    return found


def masked(arguments: Sequence[str]) -> list[str]:
    """A command line of vLLM's as it may be shown: ``***`` in the place of what is secret.

    All spellings count: ``--a-b V W``, ``--a_b=V``, ``--a-b.key V``, and abbreviations.
    """
    shown, secret = [], False
    for part in arguments:
        if not part.startswith("-"):
            shown.append("***" if secret else part)
            continue
        name, equals, _ = part.partition("=")
        flag = name.replace("_", "-").partition(".")[0]
        secret = len(flag) > 2 and any(each.startswith(flag) for each in _SECRETS)
        shown.append(f"{name}=***" if secret and equals else part)
    return shown


def is_on(switch: str, arguments: Sequence[str]) -> bool:
    """Whether a switch of vLLM's is set: ``--a-b`` on the command line, ``--a-b=True`` of a file."""
    wanted = {switch, f"{switch}=True"}
    return any(part.replace("_", "-") in wanted for part in arguments)
