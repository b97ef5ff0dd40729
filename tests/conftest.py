"""What must be in the environment before the first import of vllm, and the one server of all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.sharing import group, is_with_its_group, scheduler

if TYPE_CHECKING:
    from tests.server.conftest import Server

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # no test fetches anything
    "OMP_NUM_THREADS": "1",  # tiny models: one thread is as fast, and alike on every machine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # do not fight for a core with what runs beside
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; the default takes a share of the whole memory
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, where tests can look inside
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in a job that a shell put in the background: what tests interrupt would go on.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no reason to fail. Here, as a test takes its settings when its file is read.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

if os.environ.get("VTR_TEST_RUNNER", "v1") == "v2":
    # vLLM's runner V2 is made for GPUs. Triton's interpreter runs its kernels here, slowly, once
    # triton believes in a CPU backend; `make test-v2` runs the engine tests so.
    os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}

    import triton.backends

    class _NoDriver:
        @staticmethod
        def is_active() -> bool:
            return False

    triton.backends.backends["cpu"] = triton.backends.Backend(compiler=None, driver=_NoDriver)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """An engine that ran in this process lets vLLM remember its variables; tests change them."""
    if envs := sys.modules.get("vllm.envs"):
        envs.disable_envs_cache()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, those with an engine begin: they take longest."""
    for item in items:
        if not is_with_its_group(item.nodeid, getattr(item, "fixturenames", ())):
            raise pytest.UsageError(f"tests/sharing.py is blind to what {item.nodeid} asks for")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not group(item.nodeid).startswith(":"))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return scheduler(config, log)


@pytest.fixture(scope="session")
def schedules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the server looks at, with one schedule of budget 0.5."""
    from tests.server.conftest import store_schedules

    folder = tmp_path_factory.mktemp("schedules")
    store_schedules(folder)
    return folder


@pytest.fixture(scope="session")
def server(schedules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server, as ``vtr serve`` starts it; stopped at the end of the run."""
    from tests.server.conftest import serve

    yield from serve(schedules, tmp_path_factory.mktemp("server"))
