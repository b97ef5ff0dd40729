"""The ``vllm`` command where its script does not start: ``python -m benchmarks.vllm_cli serve ...``.

The script of vLLM's CPU build 0.32.0 asks for a distribution named vllm, which it is not, and
fails before it reads a flag. Here that one question is answered; all else is vLLM's, and nothing
of VTR is loaded.
"""

from __future__ import annotations

import importlib.metadata
import sys

import vllm
from vllm.entrypoints.cli.main import main

if __name__ == "__main__":  # an engine's processes import this module too
    asked = importlib.metadata.version
    importlib.metadata.version = lambda name: vllm.__version__ if name == "vllm" else asked(name)
    sys.argv[0] = "vllm"
    main()
