"""What a training goes on from."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from vtr_vllm.errors import ConfigurationError, show
from vtr_vllm.whole_file import remove_leftovers, whole_file_of_bytes

__all__ = ["STATE", "load_state", "save_state"]

STATE = "training.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write what a training goes on from, at once; OSError passes through.

    Nobody else may be writing it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder / STATE)  # each as large as the state
    with whole_file_of_bytes(folder / STATE) as file:
        torch.save(state, file)


def load_state(folder: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The state of a training that was asked the same; None where there is none.

    Raises ConfigurationError for one that was asked something else.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        before: dict[str, Any] = state["asked"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as err:
        raise ConfigurationError(
            f"{path} is no state of a training ({type(err).__name__}); remove it, and training begins"
            " anew"
        ) from err
    other = [
        f"{name} {show(before.get(name))} and not {show(asked.get(name))}"
        for name in sorted({*before, *asked})
        if before.get(name) != asked.get(name)
    ]
    if other:
        raise ConfigurationError(
            f"{path} is of a training with {', '.join(other)}; give the same again, or another --out"
        )
    return state
