"""An engine's process with a stand-in for the engine, which starts a process of its own as
tensor-parallel ones do. Run as a program it leaves its pool open."""

import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing import get_context
from types import ModuleType
from typing import Any

from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.search import engine_pool
from vtr_vllm.search.answers import EngineOptions

GEOMETRY = ModelGeometry(2, 8, 16, 2, 2, 4)
STUBBORN = {"stubborn": True}
"""Arguments of an engine that neither the pipe's end nor SIGTERM ends."""
_real = engine_pool._serve


class Engine:
    """What a pool asks of its engines."""

    geometry = GEOMETRY
    versions: Mapping[str, str] = {"model": "none"}
    has_cls = False
    band_starts = (0,)

    def __init__(self, options: EngineOptions) -> None:
        child = get_context("spawn").Process(target=time.sleep, args=(0,), daemon=True)
        child.start()
        child.join()
        assert child.exitcode == 0
        self._stubborn = options.engine_args == STUBBORN
        if self._stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def prompts(self, items: Any) -> list[Any]:
        if self._stubborn:
            time.sleep(600)
        return list(items)


def serve(*arguments: Any) -> None:
    """The pool's own function, with the stand-in."""
    module = ModuleType("vtr_vllm.search.vllm_evaluator")
    module.VLLMEvaluator = Engine  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    _real(*arguments)


def leave_open() -> None:
    """A pool that nobody closes."""
    from tests.vtr_vllm.search import parallel_engine  # as the engines' processes import it

    engine_pool._serve = parallel_engine.serve
    pool = engine_pool.EnginePool(EngineOptions("none"))
    print(pool.versions["model"], flush=True)
    globals()["kept"] = pool


if __name__ == "__main__":
    leave_open()
