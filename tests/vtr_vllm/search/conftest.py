"""Two engines on the demo model, for the tests that want any."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator

import pytest

from tests.vtr_vllm.search.blank_figures import save_blank
from vtr_vllm.search.answers import EngineOptions
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.converters import from_demo
from vtr_vllm.search.engine_pool import EnginePool

MAX_TOKENS = 8
ITEMS = 40


class Pools:
    """The pool, started when first asked for, and anew once an engine that is needed has ended."""

    def __init__(self) -> None:
        self._pool: EnginePool | None = None

    def get(self, engines: int) -> EnginePool:
        """The first so many engines."""
        workers = [] if self._pool is None else self._pool._workers[:engines]
        if self._pool is None or not all(worker.process.is_alive() for worker in workers):
            self.close()
            self._pool = EnginePool(EngineOptions("demo", MAX_TOKENS, images=2), engines=2)
        found = copy.copy(self._pool)
        found._workers = self._pool._workers[:engines]
        return found

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    held = Pools()
    yield held
    held.close()


@pytest.fixture
def pool(pools: Pools) -> EnginePool:
    """Both engines."""
    return pools.get(2)


@pytest.fixture
def engine(pools: Pools) -> EnginePool:
    """The first of them alone."""
    return pools.get(1)


@pytest.fixture(autouse=True)
def _sigterm_handler() -> Iterator[None]:
    """The command's ``main`` takes SIGTERM over for its process; this one wants it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with empty figures: drawing takes most of a small search, and test_report draws."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_blank)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Questions of the demo's world, which its model can answer."""
    path = tmp_path_factory.mktemp("demo") / "items.jsonl"
    from_demo("calibration", ITEMS, path)
    return Dataset.load(path)
