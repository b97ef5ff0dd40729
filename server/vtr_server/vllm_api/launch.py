"""vLLM's command lines in this process, refused before a model is loaded where they cannot succeed."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.transformers_utils.config import get_config, get_hf_text_config
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vtr_server.policy.settings import ServerSettings
from vtr_vllm import preflight
from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.command_line import LAUNCH_VARIABLE, OneLineErrors, refuse
from vtr_vllm.engine_settings import EngineSettings
from vtr_vllm.errors import ConfigurationError, VTRError
from vtr_vllm.schedules import ModelGeometry

__all__ = ["Parser", "check", "run_vllm_serve"]


class Parser(OneLineErrors, FlexibleArgumentParser):
    """vLLM's parser, which refuses in one line."""


def run_vllm_serve(arguments: Sequence[str]) -> None:
    """``vllm serve``; ``arguments`` begin with ``serve``."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    cli_env_setup()
    parser = Parser(prog="vtr serve", description="vLLM's server with VTR")
    command = ServeSubcommand()
    flags = command.subparser_init(parser.add_subparsers(dest="subparser", required=True))
    flags.prog = parser.prog  # a flag is refused by either of the two
    args = parser.parse_args(list(arguments))
    configure_logging_from_args(args)
    try:
        command.validate(args)
        args.model = args.model_tag or args.model
        check(args)
    except (VTRError, TypeError, ValueError) as err:  # vLLM's validation raises the last two
        refuse("vtr serve", err)
    command.cmd(args)


def check(args: Namespace) -> None:
    """Refuse what only a parsed command line and the model's config tell; raises VTRError.

    Says what is run where that succeeds: ``vtr`` leaves the words.
    """
    ours = EngineSettings.of(args.additional_config)
    settings = ServerSettings() if ours.settings is None else ServerSettings.load(ours.settings)
    geometry = _geometry(args)
    facts = preflight.check_modules(ours.atp, geometry)
    if facts is not None:
        digest = checkpoint_digest(args.model, args.revision, args.download_dir)
        facts.check_checkpoint(digest)
    preflight.check_schedules(
        ours.schedules, geometry, settings.jobs is not None, () if facts is None else facts.layers
    )
    if said := os.environ.pop(LAUNCH_VARIABLE, None):
        print(f"vtr: {said}", file=sys.stderr, flush=True)


def _geometry(args: Namespace) -> ModelGeometry | None:
    """The sizes of the model, defaults of its class included; None where the flags hide them."""
    if args.hf_overrides or "://" in args.model:
        return None
    try:
        config = get_config(
            args.hf_config_path or args.model,
            args.trust_remote_code,
            args.revision,
            args.code_revision,
            args.config_format,
            token=args.hf_token,
        )
    except (
        OSError,
        ValueError,
    ) as err:  # Transformers' messages are a page long; the first line says it
        reason = str(err).partition("\n")[0]
        raise ConfigurationError(f"model {args.model} cannot be had: {reason}") from err
    return ModelGeometry.from_config(get_hf_text_config(config).to_dict())
