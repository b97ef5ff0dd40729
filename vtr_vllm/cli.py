"""The ``vtr`` command. Loads neither torch nor vllm: help, and why a start is refused, come at once."""

import argparse
import importlib.metadata
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vtr_vllm import __version__, preflight
from vtr_vllm.command_line import LAUNCH_VARIABLE, Parser, is_on, masked, refuse, value_of
from vtr_vllm.engine_settings import PLUGIN, SCHEDULER_CLS, WORKER_CLS, EngineSettings
from vtr_vllm.errors import ConfigurationError, VTRError
from vtr_vllm.own_models import OWN_MODELS

__all__ = ["Launch", "main", "plan_batch", "plan_serve"]

DRAIN_SECONDS = 60  # for what is in flight at SIGTERM; vLLM's own default aborts it

# What vLLM loads by itself while VLLM_PLUGINS is unset; endpoint plugins it never does.
_DEFAULT_GROUPS = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)

_SERVE_HELP = """\
Serve MODEL with vLLM's OpenAI server and per-request vision-token budgets.

MODEL is anything that `vllm serve` takes, or `demo`: the checkpoint in this package, or `photo`: what `make
photo-model` writes. It stands first, or is given as --model anywhere, or as `model` in the file of --config.
Every other flag goes to vLLM as it is; `vtr serve --help=all` lists vLLM's."""

_BATCH_HELP = """\
Run a file of requests, each with its own vision-token budget, and write their answers.

One JSON object a line, in the form of OpenAI's batch files. MODEL and its places are those of
`vtr serve`. Every other flag goes to vLLM's batch runner as it is."""


@dataclass(frozen=True)
class Launch:
    """A process to become: arguments of ``python -P -m vtr_server`` and what the environment gains."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        given = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*given, "python -P -m vtr_server", shlex.join(masked(self.arguments))])


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns only when a command fails or has nothing to become."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = Parser(
        prog="vtr", description="Layer-wise vision-token reduction, served inside vLLM."
    )
    parser.add_argument("--version", action="version", version=f"vtr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_batch(commands)
    commands.add_parser("search", help="find schedules for a model", add_help=False)
    commands.add_parser("train", help="train what reduces vision tokens", add_help=False)
    commands.add_parser("keys", help="make API keys for --settings", add_help=False)
    commands.add_parser("settings", help="check a file for --settings", add_help=False)
    if arguments[:1] == ["search"]:
        return _search(arguments[1:])
    if arguments[:1] == ["train"]:
        from vtr_vllm.training.cli import main as train

        return train(arguments[1:])
    if arguments[:1] == ["keys"]:
        from vtr_server.gate.cli import main as keys

        return keys(arguments[1:])
    if arguments[:1] == ["settings"]:
        from vtr_server.policy.settings_cli import main as settings

        return settings(arguments[1:])
    if arguments[:1] == ["serve"] and any(part.startswith("--help=") for part in arguments):
        _become(Launch(tuple(arguments), {}))  # vLLM's help by section
    # MODEL is taken out by hand: what else stands alone may be the value of a flag of vLLM's
    first = arguments[1:2] if not "".join(arguments[1:2]).startswith("-") else []
    options, rest = parser.parse_known_args([*arguments[:1], *arguments[1 + len(first) :]])
    try:
        options.config = _read_config(options)
        named = [*first, *_listed(options.model), *_listed(options.config.get("model"))]
        options.model = _model(named)
        plan = plan_serve if options.command == "serve" else plan_batch
        launch = plan(options, rest, os.environ)
        _check(options, launch)
    except VTRError as err:
        refuse(f"vtr {options.command}", err)
    _become(launch)
    return 2


def _model(given: Sequence[str]) -> str:
    """The one model that was named, in whichever places."""
    named = sorted(set(given))
    if not named:
        raise ConfigurationError(
            "name the model: vtr serve MODEL --port 8080; or --model MODEL, or model in the file of"
            " --config"
        )
    if len(named) > 1:
        raise ConfigurationError(f"models {' and '.join(named)} are named; give one")
    return named[0]


def _listed(value: object) -> list[str]:
    return [] if value is None else [str(value)]


def _read_config(options: argparse.Namespace) -> dict[str, Any]:
    """What a YAML file of vLLM's flags says, by name without leading dashes."""
    path = options.config_file
    if path is None:
        return {}
    import yaml  # comes with vLLM

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise ConfigurationError(
            f"--config {path} cannot be read as YAML ({err}); name a file of vLLM's flags"
        ) from err
    if not isinstance(found, dict):
        raise ConfigurationError(f"--config {path} must hold one mapping of flags to values")
    config = {str(key).replace("_", "-"): value for key, value in found.items()}
    if ours := sorted(config.keys() & {"schedules", "settings", "atp", "config"}):
        raise ConfigurationError(
            f"--config {path} holds {', '.join(ours)}; give that on the command line"
        )
    if options.additional_config is not None and "additional-config" in config:
        raise ConfigurationError(
            f"--additional-config is given, and stands in --config {path} too; keep one of them"
        )
    return config


def _check(options: argparse.Namespace, launch: Launch) -> None:
    """Refuse what cannot succeed, before anything is loaded; raises VTRError."""
    from vtr_server.policy.exposure import check_exposure
    from vtr_server.policy.settings import ServerSettings

    flags = [*(f"--{name}={value}" for name, value in options.config.items()), *launch.arguments]
    environ = os.environ | dict(launch.environment)
    own = OWN_MODELS.get(options.model)
    model = options.model if own is None else str(own.checkpoint)
    config = json.loads(value_of("--additional-config", launch.arguments) or "{}")
    ours = EngineSettings.of(config)
    settings = ServerSettings() if ours.settings is None else ServerSettings.load(ours.settings)
    if options.command == "batch":
        preflight.check_batch_files(options.input_file, options.output_file)
    preflight.check_front_end(flags, environ)
    preflight.check_model(model, flags, environ)
    geometry = preflight.known_geometry(model, flags)
    facts = preflight.check_modules(ours.atp, geometry)
    preflight.check_schedules(
        ours.schedules, geometry, settings.jobs is not None, () if facts is None else facts.layers
    )
    if options.command == "serve" and not is_on("--headless", flags):
        local = value_of("--uds", flags) is not None
        check_exposure(settings, "localhost" if local else value_of("--host", flags))
        admin = settings.admin
        preflight.check_address(flags, (admin.host, admin.port) if admin else None)


def _search(arguments: Sequence[str]) -> int:
    """The search's own command line, or its service; neither is loaded for other commands."""
    os.environ["PYTHONSAFEPATH"] = "1"  # for the engines that it starts: see _become
    if arguments[:1] == ["serve"]:
        from vtr_server.jobs.cli import main as serve_jobs

        return serve_jobs(arguments[1:])
    from vtr_vllm.search.cli import main as search

    return search(arguments)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model with vision-token budgets",
        description=_SERVE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an abbreviation may be a flag of vLLM's
        usage="vtr serve MODEL [--schedules FOLDER] [--settings FILE] [--atp FOLDER] [flags of vLLM's]",
        epilog="Example: vtr serve demo --port 8080",
    )
    _add_shared(serve)


def _add_batch(commands: Any) -> None:
    batch = commands.add_parser(
        "batch",
        help="run a file of requests with vision-token budgets",
        description=_BATCH_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="vtr batch MODEL -i FILE -o FILE [--schedules FOLDER] [--settings FILE] [...]",
        epilog="Example: vtr batch demo -i requests.jsonl -o answers.jsonl",
    )
    batch.add_argument("-i", "--input-file", metavar="FILE", required=True, help="path or URL")
    batch.add_argument("-o", "--output-file", metavar="FILE", required=True, help="path or URL")
    _add_shared(batch)


def _add_shared(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="MODEL", help="model path or name, `demo` or `photo`")
    command.add_argument(
        "--config",
        metavar="FILE",
        dest="config_file",
        help="YAML file of vLLM's flags; what the command line says wins",
    )
    command.add_argument(
        "--schedules",
        metavar="FOLDER",
        type=Path,
        help="folder of schedule files that requests may name or reach by budget",
    )
    command.add_argument(
        "--settings", metavar="FILE", type=Path, help="TOML file of policy, limits, keys and tiers"
    )
    command.add_argument(
        "--atp", metavar="FOLDER", type=Path, help="modules of `vtr train atp`, for rank rule atp"
    )
    command.add_argument("--additional-config", metavar="JSON", help=argparse.SUPPRESS)


def plan_serve(
    options: argparse.Namespace, rest: Sequence[str], environ: Mapping[str, str]
) -> Launch:
    """What ``vtr serve`` runs; pure, but for looking whether the demo's files exist."""
    return _plan(("serve",), options, rest, environ)


def plan_batch(
    options: argparse.Namespace, rest: Sequence[str], environ: Mapping[str, str]
) -> Launch:
    """What ``vtr batch`` runs: the engine and the routes of ``vtr serve``, without a socket."""
    files = ("-i", options.input_file, "-o", options.output_file)
    return _plan(("batch", *files, "--model"), options, rest, environ)


def _plan(
    start: Sequence[str],
    options: argparse.Namespace,
    rest: Sequence[str],
    environ: Mapping[str, str],
) -> Launch:
    """A command line that begins with ``start`` and the model."""
    own = OWN_MODELS.get(options.model)
    flags = {"--worker-cls": WORKER_CLS, "--scheduler-cls": SCHEDULER_CLS}
    flags["--shutdown-timeout"] = str(DRAIN_SECONDS)
    environment = {"VLLM_PLUGINS": _plugins(environ)}
    schedules = options.schedules
    if own is not None:
        flags |= own.flags()
        environment |= {k: environ.get(k, value) for k, value in own.environment().items()}
        if schedules is None and own.schedules.is_dir():
            schedules = own.schedules
    arguments = [*start, options.model if own is None else str(own.checkpoint)]
    for flag, value in flags.items():
        if value_of(flag, rest) is None and flag.removeprefix("--") not in options.config:
            arguments += [flag, value] if value else [flag]
    given = options.config.get("additional-config", options.additional_config)
    paths = {"schedules": schedules, "settings": options.settings, "atp": options.atp}
    config = _additional_config(given, paths)
    if config:
        arguments += ["--additional-config", json.dumps(config)]
    if options.config_file is not None:
        arguments += ["--config", options.config_file]
    return Launch((*arguments, *rest), environment)


def _plugins(environ: Mapping[str, str]) -> str:
    """VLLM_PLUGINS with ours in it, and still in it what would be loaded without us."""
    if "VLLM_PLUGINS" in environ:
        names = [name for name in environ["VLLM_PLUGINS"].split(",") if name]
    else:
        found = importlib.metadata.entry_points()
        names = sorted({e.name for group in _DEFAULT_GROUPS for e in found.select(group=group)})
    return ",".join(names if PLUGIN in names else [*names, PLUGIN])


def _additional_config(
    given: str | dict[str, Any] | None, paths: Mapping[str, Path | None]
) -> dict[str, Any]:
    """vLLM's ``--additional-config`` with ``paths``, those that were given, under ``vtr``."""
    try:
        config = json.loads(given) if isinstance(given, str) else given or {}
    except ValueError as err:
        raise ConfigurationError(
            f"--additional-config is no JSON ({err}); give one JSON object"
        ) from err
    if not isinstance(config, dict) or not isinstance(config.get("vtr", {}), dict):
        raise ConfigurationError("--additional-config and its vtr must be JSON objects")
    ours = {name: str(path.resolve()) for name, path in paths.items() if path is not None}
    return config | {"vtr": config.get("vtr", {}) | ours} if ours else config


def _become(launch: Launch) -> NoReturn:
    """Replace this process, so that signals and exit codes are vLLM's own.

    -P, and for processes that it starts the variable: a ``json.py`` or ``vllm.py`` where the user
    stands is not what is meant.
    """
    command = [sys.executable, "-P", "-m", "vtr_server", *launch.arguments]
    ours = {**launch.environment, "PYTHONSAFEPATH": "1", LAUNCH_VARIABLE: str(launch)}
    os.execve(sys.executable, command, dict(os.environ) | ours)


if __name__ == "__main__":
    raise SystemExit(main())
