"""vLLM's own way of attaching endpoint plugins, with ours there, not named, and broken."""

from __future__ import annotations

import sys
from argparse import Namespace
from importlib.metadata import entry_points
from typing import Any

import pytest

pytest.importorskip("vllm")

import vllm.plugins
from fastapi import FastAPI
from vllm.plugins.endpoint_plugins.interface import attach_endpoint_plugins

from vtr_vllm.engine.frontend import endpoint_guard
from vtr_vllm.errors import ConfigurationError


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = vllm.plugins.load_endpoint_plugins
    monkeypatch.setattr(vllm.plugins, "load_endpoint_plugins", stock)  # put back at the end
    endpoint_guard.install()
    endpoint_guard.install()  # as vLLM may


def attach(additional_config: Any) -> list[str]:
    """The names of the plugins that an API server of this configuration has."""
    app = FastAPI()
    app.state.args = Namespace(additional_config=additional_config)
    attach_endpoint_plugins(app, ("generate",))
    return [plugin.name for plugin in app.state.endpoint_plugins]


@pytest.fixture
def settings(tmp_path: Any) -> dict[str, Any]:
    file = tmp_path / "settings.toml"
    file.write_text("")
    return {"vtr": {"settings": str(file)}}


@pytest.mark.parametrize("plugins", [None, "", "other"])
def test_an_api_server_with_settings_needs_the_plugin(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], plugins: str | None
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    with pytest.raises(ConfigurationError, match="VLLM_PLUGINS .* it must name vtr"):
        attach(settings)


@pytest.mark.parametrize("config", [None, {}, {"vtr": {}}, "text"], ids=str)
def test_without_settings_vllm_is_let_be(monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert attach(config) == ["vtr-missing"]


def test_with_the_plugin_nothing_stands_in(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "vtr")
    assert attach(settings) == ["vtr"]


def test_a_plugin_that_cannot_be_imported_is_missing(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "vtr")
    [found] = entry_points(group="vllm.endpoint_plugins", name="vtr")
    monkeypatch.setitem(sys.modules, found.module, None)  # importing it fails
    with pytest.raises(ConfigurationError, match="the log above says why"):
        attach(settings)
