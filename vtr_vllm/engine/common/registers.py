"""Learned registers of a checkpoint: how many places each image has behind its vision tokens."""

from typing import Any

from vtr_vllm.errors import ConfigurationError

REGISTERS_KEY = "vtr_registers"
"""Of a checkpoint's ``config.json``: registers of each image; their embeddings are the weight ``registers``."""
_MOST = 1024
_ARCHITECTURE = "LlavaForConditionalGeneration"
_TOWERS = ("clip_vision_model", "siglip_vision_model")


def registers_of(hf_config: Any) -> int:
    """Registers of each image, 0 for most checkpoints.

    Raises ConfigurationError where there are some that we do not know how to place.
    """
    count = getattr(hf_config, REGISTERS_KEY, 0)
    if type(count) is not int or not 0 <= count <= _MOST:
        raise ConfigurationError(
            f"{REGISTERS_KEY} of the checkpoint's config.json is {count!r}; it must be a whole number"
            f" from 0 to {_MOST}"
        )
    if not count:
        return 0
    tower = getattr(getattr(hf_config, "vision_config", None), "model_type", None)
    architectures = getattr(hf_config, "architectures", None) or []
    if _ARCHITECTURE not in architectures or tower not in _TOWERS:
        raise ConfigurationError(
            f"the checkpoint has {REGISTERS_KEY} = {count} and is {', '.join(architectures)} with"
            f" {tower}; registers are served in {_ARCHITECTURE} with {' or '.join(_TOWERS)}"
        )
    return count
