"""What vLLM's operators look up by a layer's name, of whichever layer runs.

Attention and experts are operators that get no tensors but the step's: they take their layer, its KV
cache, metadata and slots from the forward context, by name. A graph compiled once for all layers that are
alike should ask by the name of the layer that it is called with. torch 2.13 reads it at each call. Older
ones compile the first layer's name in (seen with 2.11): every layer would then read and write the first
one's KV cache. So while a layer runs, the names of all layers mean it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.forward_context import get_forward_context

from vtr_vllm.engine.worker.attention import Step


class LayerNames:
    """The names of one decoder's layers. ``names``: of each layer's attention, by depth."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._prefixes = tuple(_of_layer(name) for name in names)
        self._modules: list[dict[str, Any]] = []
        """By depth: name -> module, where names of any layer mean this one's modules."""

    def enter(self, layer: int, step: Step) -> None:
        """Let the forward context know ``layer`` by the names of all."""
        context = get_forward_context()
        if not self._modules:
            self._modules = self._by_layer(context.no_compile_layers)
        name = self._names[layer]
        context.no_compile_layers = self._modules[layer]
        context.attn_metadata = dict.fromkeys(self._names, step.metadata[name])
        context.slot_mapping = dict.fromkeys(self._names, step.slots[name])

    def _by_layer(self, modules: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                **modules,
                **{
                    other + name.removeprefix(prefix): module
                    for name, module in modules.items()
                    if name.startswith(f"{prefix}.")
                    for other in self._prefixes
                },
            }
            for prefix in self._prefixes
        ]


def _of_layer(attention: str) -> str:
    """``model.layers.3`` of ``model.layers.3.self_attn.attn``: as far as the first number."""
    parts = attention.split(".")
    number = next(place for place, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: number + 1])
