"""Built-in schedules: baselines of the literature, each at a given mean keep rate; one file each.

The number in a form's name is always the mean keep rate over ALL layers, whatever number the
method's own paper uses, so that ``fastv-0.5`` and ``pdrop-0.5`` spend the same budget.

To add one, write a function with ``form`` in a file of its own here.
"""

import importlib
import pkgutil

from vtr_vllm.schedules.forms.registry import FORMS, form_by_name

__all__ = ["FORMS", "form_by_name"]

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")
