"""What was trained of the photo model, put into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

__all__ = ["DELTA", "PROJECTOR", "add_delta"]

DELTA = Path(__file__).with_name("delta.safetensors")
PROJECTOR = "projector."
"""Before the names of the projector's weights, which are whole; all else is LoRA."""
_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"
_SCALE = 2.0  # LoRA's alpha over its rank, in vtr_vllm.training.lora


def add_delta(model: Any, path: Path = DELTA) -> None:
    """Set the projector's weights and add the adapters' products to the decoder's; OSError passes through."""
    with safe_open(path, "pt") as file:
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
