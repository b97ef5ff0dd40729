"""LoRA on a decoder while modules, registers or a projector are trained with it, through peft."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vtr_vllm.errors import ConfigurationError

__all__ = ["add", "check", "load", "merge", "parameters", "tensors"]

_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_MARK = "lora_"  # in the name of every weight that peft adds


def check() -> None:
    """Refuse where peft is not installed; raises ConfigurationError."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigurationError(
            "--lora needs the package peft, which is not installed; pip install '.[train]', or"
            " leave --lora out and train the modules alone"
        )


def add(decoder: Any, rank: int) -> None:
    """Give every projection of a decoder an adapter of ``rank``, which changes nothing at first.

    In float32, whatever the decoder's type: in bfloat16 most steps would round to nothing.
    """
    check()
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(_TARGETS))
    inject_adapter_in_model(config, decoder)
    for weight in parameters(decoder):
        weight.data = weight.data.float()


def merge(decoder: Any, into: Any) -> None:
    """Add what a decoder's adapters learned to the projections of another, which has none.

    The sum is rounded once, to the type of ``into``.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in decoder.named_modules():
        if isinstance(module, LoraLayer):
            weight = into.get_submodule(name).weight
            learned = module.get_delta_weight("default").detach().float()
            weight.data = (weight.data.float() + learned.to(weight.device)).to(weight.dtype)


def load(decoder: Any, rank: int, path: Path) -> None:
    """Add adapters with the weights of a file; raises ConfigurationError."""
    add(decoder, rank)
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as err:
        raise ConfigurationError(f"{path} cannot be read ({err}); train again") from err
    if found.keys() != tensors(decoder).keys():
        raise ConfigurationError(f"{path} has other weights than LoRA of rank {rank}; train again")
    decoder.load_state_dict(found, strict=False)


def parameters(decoder: nn.Module) -> list[nn.Parameter]:
    """The adapters' weights; none without ``add``."""
    return [weight for name, weight in decoder.named_parameters() if _MARK in name]


def tensors(decoder: nn.Module) -> dict[str, Tensor]:
    """The same by name."""
    return {name: tensor for name, tensor in decoder.state_dict().items() if _MARK in name}
