"""In the engine core's process: when a request runs, and where its KV is allocated.

``--scheduler-cls vtr_vllm.engine.scheduler.Scheduler`` names the class of this folder.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Late: the other processes read names of this folder and never schedule.
    if name == "Scheduler":
        from vtr_vllm.engine.scheduler.scheduler import Scheduler

        return Scheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
