"""One engine per set of arguments, kept for the whole run: each takes seconds to start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TinyShape, tiny_llava

LAYERS = 8
SHAPE = TinyShape(layers=LAYERS)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return tiny_llava(layers=LAYERS)


class Engines:
    """Starts engines on demand and holds one at a time: an in-process engine owns the process."""

    def __init__(self) -> None:
        self._current: tuple[str, Any] | None = None

    def get(self, **arguments: Any) -> Any:
        key = repr(sorted(arguments.items()))
        if self._current is None or self._current[0] != key:
            self.close()
            from tests.vtr_vllm.engine.support import start

            self._current = (key, start(**arguments))
        return self._current[1]

    def close(self) -> None:
        if self._current is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._current[1].llm_engine.engine_core.shutdown()
        self._current = None
        gc.collect()
        cleanup_dist_env_and_memory()


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    held = Engines()
    yield held
    held.close()
