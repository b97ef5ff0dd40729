"""Each engine gets GPUs of its own. No GPU is needed: the driver's count is given."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from types import ModuleType
from typing import Any

import pytest
import torch

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.search import engine_pool
from vtr_vllm.search.answers import EngineOptions
from vtr_vllm.search.devices import VISIBLE, assign, visible

ONE = EngineOptions("demo")
TWO = EngineOptions("demo", engine_args={"tensor_parallel_size": 2})


@pytest.mark.parametrize(
    ("environ", "count", "names"),
    [
        ({}, 0, []),
        ({}, 2, ["0", "1"]),
        ({VISIBLE: "3, 5"}, 2, ["3", "5"]),
        ({VISIBLE: "GPU-ab,GPU-cd"}, 2, ["GPU-ab", "GPU-cd"]),
        ({VISIBLE: "4,-1,6"}, 1, ["4"]),
        ({VISIBLE: ""}, 0, []),
    ],
)
def test_devices_are_named_as_the_environment_names_them(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], count: int, names: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert visible(environ) == names


@pytest.mark.parametrize(
    ("devices", "options", "engines", "shares"),
    [
        ([], ONE, 3, [None, None, None]),
        (["0", "1"], ONE, 1, [None]),
        (["0", "1", "2", "3"], ONE, 3, ["0", "1", "2"]),
        (["4", "6"], ONE, 2, ["4", "6"]),
        (["0", "1", "2", "3", "4"], TWO, 2, ["0,1", "2,3"]),
    ],
)
def test_no_device_is_given_twice(
    devices: list[str], options: EngineOptions, engines: int, shares: list[str | None]
) -> None:
    assert assign(devices, options, engines) == shares


@pytest.mark.parametrize(
    ("devices", "options", "engines", "said"),
    [
        (["7"], ONE, 2, r"2 in all, and 1 can be seen \(7\); give --engines 1 or fewer"),
        (["0", "1", "2"], TWO, 2, "2 GPUs for each engine, 4 in all, and 3"),
        (["0"], TWO, 2, "give --engines 1 or fewer"),
        (["0", "1"], EngineOptions("m", engine_args={"tensor_parallel_size": "2"}), 2, "is '2'"),
        (["0", "1"], EngineOptions("m", engine_args={"tensor_parallel_size": 0}), 2, "is 0"),
    ],
)
def test_too_few_devices_are_refused(
    devices: list[str], options: EngineOptions, engines: int, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        assign(devices, options, engines)


def test_a_pool_with_too_few_devices_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(engine_pool, "get_context", lambda _: pytest.fail("a process was made"))
    with pytest.raises(ConfigurationError, match="--engines 2"):
        engine_pool.EnginePool(ONE, engines=2)


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """Stands in for the engine; what CUDA_VISIBLE_DEVICES was when it started."""
    import os

    seen: list[str | None] = []

    class Evaluator:
        geometry, versions, has_cls, band_starts = None, {}, False, (0,)

        def __init__(self, options: EngineOptions) -> None:
            seen.append(os.environ.get(VISIBLE))

    module: Any = ModuleType("vllm_evaluator")
    module.VLLMEvaluator = Evaluator
    monkeypatch.setitem(sys.modules, "vtr_vllm.search.vllm_evaluator", module)
    for name in (VISIBLE, "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "before"))
    before = signal.getsignal(signal.SIGINT)
    yield seen
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("own", "set_to"), [("2,3", "2,3"), (None, "before")])
def test_an_engine_starts_with_its_own_devices(
    evaluator: list[str | None], monkeypatch: pytest.MonkeyPatch, own: str | None, set_to: str
) -> None:
    monkeypatch.setenv(VISIBLE, "before")
    ours, theirs = Pipe()
    ours.send([])
    ours.close()  # as a search that ends: the engine's process returns
    engine_pool._serve(theirs, ONE, 1, own)
    assert evaluator == [set_to]
