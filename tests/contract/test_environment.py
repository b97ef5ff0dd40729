"""What one test leaves in the process must not reach the next one."""

from __future__ import annotations

import pytest

envs = pytest.importorskip("vllm.envs")


@pytest.mark.parametrize("engine", ["a first", "a second"])
def test_a_test_may_set_a_variable_of_vllm_whatever_ran_before(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", engine)
    assert [engine] == envs.VLLM_PLUGINS
    envs.enable_envs_cache()  # as each engine does that starts in this process
