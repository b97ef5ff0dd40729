"""The command line: flags, and what is refused before anything starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vtr_vllm import cli as vtr
from vtr_vllm.errors import EvaluationFailed
from vtr_vllm.search import cli, commands

SEARCH = ["all", "--out", "out", "--model", "demo", "--data", "items.jsonl"]


@pytest.fixture
def asked(monkeypatch):
    """The options of every command, in place of running it."""
    seen = []
    for name in ("search", "compare", "report", "convert"):
        monkeypatch.setattr(commands, name, seen.append)
    return seen


def test_defaults(asked):
    assert cli.main(SEARCH) == 0
    (options,) = asked
    asked = options.asked
    assert (asked.engines, asked.max_tokens, asked.servers) == (1, 32, [])
    assert (asked.objective, asked.engine_args, options.dry_run) == ("accuracy", {}, False)
    assert (asked.items, asked.max_minutes) == (None, None)


def test_every_flag_arrives(asked):
    flags = (
        "--heldout held.jsonl --budgets 0.5,0.25 --objective label-free --tolerance 0.02"
        " --family both --inner bayes --lambda 0.1 --trials 9 --items 100 --max-minutes 1.5 --seed 7 --dry-run"
        " --engines 2 --max-tokens 5 --journal sqlite:///j --events e.jsonl"
    )
    engine = '{"dtype": "float16", "max_model_len": 512}'
    assert cli.main(["p-sigmoid", *SEARCH[1:], *flags.split(), "--engine-args", engine]) == 0
    (options,) = asked
    given = options.asked
    assert (given.kind, given.family) == ("p-sigmoid", "both")
    assert given.budgets == [0.5, 0.25]
    assert (given.tolerance, given.inner, given.weight) == (0.02, "bayes", 0.1)
    assert (given.trials, given.items, given.seed) == (9, 100, 7)
    backend = commands._backend(given, given.model)
    assert backend.options.model == "demo"
    assert backend.options.max_tokens == 5
    assert backend.options.engine_args == {"dtype": "float16", "max_model_len": 512}
    assert (backend.engines, backend.servers) == (2, [])
    assert (given.objective, options.dry_run) == ("label-free", True)
    assert (given.heldout, given.max_minutes) == ("held.jsonl", 1.5)
    assert (options.journal, options.events) == ("sqlite:///j", Path("e.jsonl"))
    assert options.command_line.startswith("vtr search p-sigmoid --out out")
    assert engine in options.command_line


def test_servers_instead_of_engines(asked):
    assert cli.main([*SEARCH, "--servers", "http://a:1/,http://b:2"]) == 0
    backend = commands._backend(asked[0].asked, "demo")
    assert (backend.engines, backend.servers) == (1, ["http://a:1", "http://b:2"])


def test_other_commands_have_their_flags(asked):
    splits = ["--split", "a=x.jsonl", "--split", "b=y=z"]
    assert cli.main(["compare", "--out", "o", *splits, "--data", "d", "--engines", "2"]) == 0
    assert cli.main(["report", "--out", "o"]) == 0
    assert cli.main(["convert", "demo", "test", "t.jsonl", "--count", "12"]) == 0
    compare, report, convert = asked
    assert compare.splits == [("a", Path("x.jsonl")), ("b", Path("y=z"))]
    assert (compare.data, compare.asked.engines) == (Path("d"), 2)
    assert report.out == Path("o")
    assert (convert.format, convert.source, convert.out) == ("demo", "test", Path("t.jsonl"))
    assert convert.count == 12


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--budgets", "0.5,1.5"], "'0.5,1.5': 1: Input should be less than 1"),
        (["--budgets", "0"], "greater than 0"),
        (["--budgets", "nan"], "finite number"),
        (["--budgets", "0.5,half"], "'half' is no number"),
        (["--budgets", ""], "give values with commas between them"),
        (["--budgets", "0.5,0.5"], "must all be different"),
        (["--tolerance=-0.1"], "greater than or equal to 0"),
        (["--tolerance", "little"], "'little' is no number"),
        (["--lambda", "2"], "less than or equal to 1"),
        (["--trials", "many"], "give a whole number"),
        (["--items", "0"], "greater than or equal to 1"),
        (["--max-minutes", "0"], "greater than 0"),
        (["--seed", "2147483648"], "less than 2147483648"),
        (["--inner", "random"], "invalid choice: 'random'"),
        (["--objective", "speed"], "invalid choice: 'speed'"),
        (["--engine-args", "{"], "'{': Expecting property name"),
        (["--engine-args", "[1]"], "valid dictionary"),
        (["--servers", ","], "give values with commas between them"),
        (["--unknown", "1"], "unrecognized arguments: --unknown"),
    ],
)
def test_a_bad_flag_is_refused_by_name(asked, capsys, flags, reason):
    with pytest.raises(SystemExit) as ended:
        cli.main([*SEARCH, *flags])
    assert ended.value.code == 2
    assert asked == []
    last = capsys.readouterr().err.splitlines()[-1]
    assert reason in last
    assert flags[0].split("=")[0] in last


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: COMMAND"),
        (["find"], "invalid choice: 'find'"),
        (SEARCH[:-2], "required: --data"),
        (["all", *SEARCH[3:]], "required: --out"),
        (["all", "--out", "o", "--data", "d"], "required: --model"),
        (["compare", "--out", "o"], "required: --split"),
        (["compare", "--out", "o", "--split", "x.jsonl"], "x.jsonl is not NAME=FILE"),
        (["compare", "--out", "o", "--split", "=x.jsonl"], "=x.jsonl is not NAME=FILE"),
        (["convert", "coco", "a", "b"], "invalid choice: 'coco'"),
    ],
)
def test_a_bad_command_is_refused(asked, capsys, arguments, reason):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert asked == []
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "error", [EvaluationFailed("the engine's own reason"), OSError(28, "No space left on device")]
)
def test_a_failure_is_one_line_and_exit_code_1(monkeypatch, capsys, error):
    def fail(options):
        raise error

    monkeypatch.setattr(commands, "search", fail)
    assert cli.main(SEARCH) == 1
    assert capsys.readouterr().err == f"vtr search: {error}\n"


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "search", interrupt)
    assert cli.main(SEARCH) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_sigterm_leaves_through_every_finally(monkeypatch, capsys):
    left = []

    def terminated(options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            left.append("the engines end")

    monkeypatch.setattr(commands, "search", terminated)
    with pytest.raises(SystemExit) as ended:
        cli.main(SEARCH)
    assert ended.value.code == 143
    assert left == ["the engines end"]
    assert "the same command goes on from here" in capsys.readouterr().err


def test_vtr_search_is_this_command_line(asked):
    assert vtr.main(["search", *SEARCH]) == 0
    assert asked[0].kind == "all"


def test_a_refusal_reaches_the_shell():
    command = [sys.executable, "-m", "vtr_vllm.cli", "search", *SEARCH]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("vtr search: items.jsonl cannot be read")


def test_a_model_of_ours_that_was_not_made_is_refused(asked, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    photo = ["photo" if text == "demo" else text for text in SEARCH]
    with pytest.raises(SystemExit) as ended:
        cli.main(photo)
    assert ended.value.code == 2
    assert "run `make photo-model`" in capsys.readouterr().err
    assert asked == []
