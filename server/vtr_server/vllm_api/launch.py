"""``vllm serve`` in this process, without the ``vllm`` script."""

from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.utils.argparse_utils import FlexibleArgumentParser


def run_vllm_serve() -> None:
    """``vllm serve`` with this process's arguments, which begin with ``serve``."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="vtr", description="vLLM's server with VTR")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser", required=True))
    args = parser.parse_args()
    configure_logging_from_args(args)
    command.validate(args)
    command.cmd(args)
