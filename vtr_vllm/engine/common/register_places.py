"""Places for learned registers in the prompt, behind the vision tokens of each image."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptReplacement, PromptUpdate

from vtr_vllm.engine.common.registers import registers_of

_Class = TypeVar("_Class", bound=type)


def leave_places(model: _Class) -> _Class:
    """Have prompts for ``model``, a class of vLLM's, hold its checkpoint's registers; returns it."""
    stock: Any = model._processor_factory

    def processor(info: Any, dummy_inputs: Any) -> Any:
        found = stock.processor(info, dummy_inputs)
        count = registers_of(info.ctx.model_config.hf_config)
        if count:
            stock_class: Any = type(found)
            found.__class__ = _with_places(stock_class)
            found.vtr_registers = count
        return found

    register = MULTIMODAL_REGISTRY.register_processor(
        processor, info=stock.info, dummy_inputs=stock.dummy_inputs
    )
    registered: _Class = register(model)
    return registered


@cache
def _with_places(stock: Any) -> type:
    def updates(self: Any, *args: Any, **named: Any) -> list[PromptUpdate]:
        found = stock._get_prompt_updates(self, *args, **named)
        return [_longer(update, self.vtr_registers) for update in found]

    return type(stock.__name__, (stock,), {"_get_prompt_updates": updates})


def _longer(update: PromptReplacement, count: int) -> PromptReplacement:
    """With ``count`` more of the token that stands for what the image becomes."""
    tokens: Callable[[int], list[int]] = update.replacement

    def replacement(item: int) -> list[int]:
        placeholders = tokens(item)
        return [*placeholders, *placeholders[-1:] * count]

    return PromptReplacement(update.modality, update.target, replacement)
