"""What benchmarks of one engine share: options, and the shape that they measure."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import measured_with
from benchmarks.shapes import Shape, UnsupportedDevice, make_shape

Pairs = list[dict[str, Any]]


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add how much is measured, and how the engine runs."""
    add = parser.add_argument
    add("--concurrency", type=int, nargs="+", default=[1, 8])
    add("--rounds", type=int, default=5)
    add("--eager", action=argparse.BooleanOptionalAction, default=True)
    add("--threads", type=int, help="CPU threads of the engine; default all cores")
    add("--dtype", help="default bfloat16; float32 on a CPU without AVX-512 BF16")


def of_one_engine(
    name: str,
    options: argparse.Namespace,
    pairs: Callable[[Shape, argparse.Namespace], Pairs],
) -> tuple[dict[str, Any], Pairs]:
    """Return ``meta`` of a results file, and what ``pairs`` measures of ``options.shape``.

    Exits where the shape is not for this device.
    """
    with tempfile.TemporaryDirectory(prefix=f"vtr-{name}-models-") as scratch:
        try:
            gpu = torch.cuda.is_available()
            shape = make_shape(options.shape, Path(scratch), None, gpu, options.dtype)
        except (UnsupportedDevice, FileNotFoundError) as error:
            sys.exit(f"benchmarks.{name.replace('-', '_')}: {error}")
        meta = measured_with(options)
        meta["options"] |= {"dtype": shape.dtype}
        return meta, pairs(shape, options)
