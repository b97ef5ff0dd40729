"""Where settings are configured, no worker starts in a process that did not load the plugin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from importlib.metadata import entry_points

from vtr_vllm.engine.common import front_end
from vtr_vllm.engine.register import register
from vtr_vllm.engine_settings import PLUGIN as LAUNCHED_WITH
from vtr_vllm.engine_settings import SCHEDULER_CLS
from vtr_vllm.errors import ConfigurationError

SETTINGS = {"vtr": {"settings": "/etc/vtr/settings.toml"}}


def config(additional: dict[str, Any] | None, scheduler: str | None = SCHEDULER_CLS) -> Any:
    return SimpleNamespace(
        additional_config=additional, scheduler_config=SimpleNamespace(scheduler_cls=scheduler)
    )


@pytest.mark.parametrize("additional", [None, {}, {"vtr": {}}, {"vtr": {"bands": 2}}], ids=str)
def test_without_settings_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, additional: dict[str, Any] | None
) -> None:
    monkeypatch.setattr(front_end, "_loaded", False)
    assert not front_end.has_settings(config(additional))
    front_end.check_worker(config(additional, scheduler=None))


@pytest.mark.parametrize(
    ("plugins", "said"), [(None, "VLLM_PLUGINS is not set"), ("", "VLLM_PLUGINS is ''")]
)
def test_with_settings_the_plugin_must_be_loaded(
    monkeypatch: pytest.MonkeyPatch, plugins: str | None, said: str
) -> None:
    monkeypatch.setattr(front_end, "_loaded", False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    with pytest.raises(ConfigurationError, match=said):
        front_end.check_worker(config(SETTINGS))
    register()
    front_end.check_worker(config(SETTINGS))


def test_with_settings_the_scheduler_must_be_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_end, "_loaded", True)
    with pytest.raises(ConfigurationError, match=f"without --scheduler-cls {SCHEDULER_CLS}"):
        front_end.check_worker(config(SETTINGS, scheduler=None))


def test_the_plugins_have_one_name() -> None:
    assert front_end.PLUGIN == LAUNCHED_WITH
    for group in ("vllm.general_plugins", "vllm.endpoint_plugins"):
        assert front_end.PLUGIN in {found.name for found in entry_points(group=group)}
