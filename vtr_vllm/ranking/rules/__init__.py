"""The rank rules: every file here is one, found by its place."""

import importlib
import pkgutil

from vtr_vllm.ranking.rule import RULES

__all__ = ["RULES"]

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")
