"""What was trained of the photo model, put into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.photo.parts import LANGUAGE, TOWER
from vtr_vllm.photo.tower import LAYERS

__all__ = ["DELTA", "PARTS", "PROJECTOR", "add_delta"]

DELTA = Path(__file__).with_name("delta.safetensors")
PARTS = f"{LANGUAGE.package} {LANGUAGE.version}, {TOWER.package} {TOWER.version}, {LAYERS} of its layers"
"""What a delta was trained on, in its metadata under ``parts``."""
PROJECTOR = "projector."
"""Before the names of the projector's weights, which are whole; all else is LoRA."""
_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"
_SCALE = 2.0  # LoRA's alpha over its rank, in vtr_vllm.training.lora


def add_delta(model: Any, path: Path = DELTA) -> None:
    """Set the projector's weights and add the adapters' products to the decoder's.

    Raises ConfigurationError for a delta of other parts; OSError passes through.
    """
    with safe_open(path, "pt") as file:
        if (parts := (file.metadata() or {}).get("parts")) != PARTS:
            raise ConfigurationError(
                f"{path} was trained on {parts or 'parts that it does not name'}, and here are {PARTS}; train"
                " again with make photo-training"
            )
        found: dict[str, Tensor] = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    inner = model.model
    projector = {
        name.removeprefix(PROJECTOR): weight
        for name, weight in found.items()
        if name.startswith(PROJECTOR)
    }
    inner.multi_modal_projector.load_state_dict(projector)
    decoder = dict(inner.language_model.named_parameters())
    for name, down in found.items():
        if name.endswith(_DOWN):
            target = name.removesuffix(_DOWN).removeprefix("lora.") + ".weight"
            up = found[name.removesuffix(_DOWN) + _UP]
            decoder[target].data += _SCALE * up @ down
