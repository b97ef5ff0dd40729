"""A message that names a flag names one that the command has: nobody is sent to what is not there."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.contract.source import code_files
from vtr_server.gate import cli as keys
from vtr_server.jobs import cli as jobs
from vtr_server.jobs.sources import FLAGS, SETTINGS
from vtr_vllm import cli as vtr
from vtr_vllm.search import cli as search
from vtr_vllm.training import cli as train

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
# a program of its own, which names what it adds itself
OWN = (
    "vtr_vllm/demo/",
    "vtr_vllm/photo/",
    "vtr_vllm/training/demo/",
    "vtr_vllm/training/photo/",
    "vtr_vllm/training/registers/demo/",
    "vtr_vllm/engine/torch_companions.py",
    "benchmarks/",
)


def added(run: Callable[[], object]) -> set[str]:
    """Every flag of the parsers that ``run`` makes."""
    found: set[str] = set()
    real = argparse._ActionsContainer._add_action

    def record(self: object, action: argparse.Action) -> argparse.Action:
        found.update(action.option_strings)
        return real(self, action)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse._ActionsContainer, "_add_action", record)
        patch.setattr(argparse.ArgumentParser, "_add_action", record)
        with suppress(SystemExit):
            run()
    return found


def served() -> set[str]:
    """The flags of ``vtr serve``: ours, and vLLM's."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    ours = added(lambda: vtr.main(["--help"]))
    return ours | added(lambda: make_arg_parser(FlexibleArgumentParser()))


@pytest.fixture(scope="module")
def commands() -> dict[str, set[str]]:
    """Prefix of a path -> the flags that its messages may name; the longest prefix counts."""
    serve = served()
    found = added(lambda: search.main(["--help"]))
    service = added(lambda: jobs.main(["--help"]))
    trained = added(lambda: train.main(["--help"]))
    new_key = added(lambda: keys.main(["new", "--help"]))
    return {
        "vtr_vllm/": serve,
        "server/": serve,
        "vtr_vllm/atp/": trained,
        "vtr_vllm/training/": trained,
        "vtr_vllm/search/": found,
        "vtr_vllm/search_options.py": found,
        "server/vtr_server/gate/": serve | new_key,
        "server/vtr_server/gate/cli.py": new_key,
        "server/vtr_server/jobs/": service | {"--schedules"},  # of a service inside of a server
        "server/vtr_server/jobs/runner.py": found,
    }


def named(text: str) -> list[tuple[int, str]]:
    """Line and flag of everything that is no docstring."""
    tree = ast.parse(text)
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    told = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, scopes) and _documented(n)}
    return [
        (node.lineno, flag)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told
        for flag in FLAG.findall(node.value)
    ]


def _documented(node: ast.AST) -> bool:
    body = getattr(node, "body", [])
    return bool(body) and isinstance(body[0], ast.Expr)


def test_every_flag_that_is_named_exists(commands: dict[str, set[str]]) -> None:
    wrong = []
    for path, text in code_files().items():
        if path.startswith(OWN):
            continue
        prefix = max((each for each in commands if path.startswith(each)), key=len, default=None)
        if prefix is None:
            continue
        wrong += [
            f"{path}:{line} {flag}" for line, flag in named(text) if flag not in commands[prefix]
        ]
    assert wrong == []


def test_each_way_to_run_jobs_names_its_own_flags(commands: dict[str, set[str]]) -> None:
    alone, inside = (" ".join(vars(names).values()) for names in (FLAGS, SETTINGS))
    assert set(FLAG.findall(alone)) <= commands["server/vtr_server/jobs/"] - {"--schedules"}
    assert FLAG.findall(inside) == ["--schedules"]
    assert "--schedules" in commands["server/"]


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ('raise E(f"{x}; give --one or --two-b")', ["--one", "--two-b"]),
        ('"""Docs of --one."""', []),
        ('def f():\n    """Docs of --one."""', []),
        ('x = "a -- b, a--b, ---c"', []),
    ],
)
def test_what_is_found(text: str, flags: list[str]) -> None:
    assert [flag for _, flag in named(text)] == flags
