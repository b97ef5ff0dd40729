"""Lets transformers import beside a CPU torch.

The CPU engine's torch may stand beside wheels of torchvision and torchaudio built for CUDA, whose
compiled halves do not load. Importing transformers' models then fails, on ``operator
torchvision::nms does not exist`` or on ``Could not load this library``. Neither library is called
here: naming torchvision's operators is enough, and torchaudio is declared absent.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

import torch

MISSING = "torchvision::nms does not exist"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_defined: list[torch.library.Library] = []  # operators live as long as their library


def make_transformers_importable() -> None:
    """Work around torchvision and torchaudio if, and only if, their import fails so."""
    if find_spec("torchvision") is not None:
        _try_torchvision()
    if find_spec("torchaudio") is not None:
        _try_torchaudio()


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


def _try_torchaudio() -> None:
    try:
        import torchaudio  # noqa: F401  (whether it imports is the question)
    except OSError:
        _forget("torchaudio")
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # find_spec: not installed


def _forget(package: str) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        del sys.modules[name]
