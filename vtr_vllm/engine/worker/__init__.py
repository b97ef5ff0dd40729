"""In the worker's process, one a device: the model with its layers in bands, ranked and cut.

``--worker-cls vtr_vllm.engine.worker.Worker`` names the class of this folder.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Late: it brings the platform's own worker along.
    if name == "Worker":
        from vtr_vllm.engine.worker.worker import Worker

        return Worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
