"""Our class of every supported architecture, derived from vLLM's own: ``families.NAME``.

vLLM imports a model class by module and attribute, late, and in more than one process. So the
attribute is made when it is asked for, and only the module of that one family is imported.
"""

from functools import cache
from importlib import import_module

from vllm.model_executor.models import registry

from vtr_vllm.engine.common.supported_models import CLS_ARCHITECTURES, SUPPORTED_ARCHITECTURES


def __getattr__(architecture: str) -> type:
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {architecture!r}")
    return _reducible(architecture)


@cache
def _reducible(architecture: str) -> type:
    from vtr_vllm.engine.common.register_places import leave_places
    from vtr_vllm.engine.worker.model import ReductionMixin
    from vtr_vllm.engine.worker.tower import ClsReductionMixin

    cls = architecture in CLS_ARCHITECTURES
    mixin = ClsReductionMixin if cls else ReductionMixin
    stock = stock_class(architecture)
    # The parent's processor, LoRA and weight mappings are class attributes, and so inherited.
    found = type(f"Reduced{stock.__name__}", (mixin, stock), {"__module__": __name__})
    return leave_places(found) if cls else found


def stock_class(architecture: str) -> type:
    """vLLM's own class of an architecture, whatever plugins have registered over it."""
    module, name = registry._VLLM_MODELS[architecture]
    found: type = getattr(import_module(registry._resolve_module_name(module)), name)
    return found
