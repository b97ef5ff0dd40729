"""Lets transformers and vLLM import beside a CPU torch.

The CPU engine's torch may stand beside wheels of torchvision, torchaudio and torchcodec built for
CUDA, whose compiled halves do not load. Importing transformers' models then fails, on ``operator
torchvision::nms does not exist`` or on ``Could not load this library``. None of them is called
here: naming torchvision's operators is enough, and the other two are declared absent.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import torch

MISSING = "torchvision::nms does not exist"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_defined: list[torch.library.Library] = []  # operators live as long as their library


def make_transformers_importable() -> None:
    """Work around each library if, and only if, its import fails so."""
    if find_spec("torchvision") is not None:
        _try_torchvision()
    for package in ("torchaudio", "torchcodec"):
        if find_spec(package) is not None:
            _try(package)


def _try_torchvision() -> None:
    try:
        import torchvision  # noqa: F401  (whether it imports is the question)
    except RuntimeError as error:
        if MISSING not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            library.define(schema)
        _defined.append(library)
        _forget("torchvision")


def _try(package: str) -> None:
    try:
        import_module(package)
    except (OSError, RuntimeError):
        _forget(package)
        sys.modules[package] = None  # type: ignore[assignment]  # as if not installed


def _forget(package: str) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        del sys.modules[name]
