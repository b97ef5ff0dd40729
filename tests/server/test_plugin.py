"""What vLLM finds at the entry point."""

from __future__ import annotations

from argparse import Namespace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from vtr_server.gate.keys import hash_key
from vtr_server.plugin import VTREndpoints, check_settings
from vtr_server.policy.schedule_choice import ScheduleChooser
from vtr_server.policy.schedule_folder import Offer
from vtr_server.policy.settings import ServerSettings
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import ModelGeometry, ScheduleBook

GEOMETRY = ModelGeometry(
    layers=12, hidden_size=128, intermediate_size=320, heads=2, kv_heads=2, head_dim=64
)

OURS = ["/health", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/schedules"]


def app_with(additional_config: Any, host: str | None = "127.0.0.1") -> FastAPI:
    app = FastAPI()
    app.state.args = Namespace(additional_config=additional_config, host=host)
    VTREndpoints().attach_router(app)
    return app


def with_settings(tmp_path: Path, text: str) -> FastAPI:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    return app_with({"vtr": {"settings": str(file)}})


def attached(tmp_path: Path, text: str, *, batch: bool) -> tuple[VTREndpoints, FastAPI]:
    """The plugin of a server with these settings, or of a batch."""
    file = tmp_path / "settings.toml"
    file.write_text(text)
    app, plugin = FastAPI(), VTREndpoints()
    app.state.args = Namespace(additional_config={"vtr": {"settings": str(file)}}, host="127.0.0.1")
    if batch:
        app.state.vtr_batch = True
    plugin.attach_router(app)
    return plugin, app


def paths(app: FastAPI) -> set[str]:
    return set(app.openapi()["paths"])


def test_vllm_finds_the_plugin_by_its_name() -> None:
    [found] = entry_points(group="vllm.endpoint_plugins", name=VTREndpoints.name)
    assert found.load() is VTREndpoints
    assert VTREndpoints.required_tasks == ("generate",)


@pytest.mark.parametrize("config", [None, {}, {"somebody": 1}, {"vtr": {}}, "text"], ids=str)
def test_without_a_file_the_defaults_hold(config: Any) -> None:
    app = app_with(config)
    assert set(OURS) <= paths(app)
    assert not any(path.startswith("/v1/jobs") for path in paths(app))
    assert app.state.vtr_gate.settings.keys == ()


def test_the_file_decides_what_is_there(tmp_path: Path) -> None:
    app = with_settings(
        tmp_path, "[jobs]\nmemory_share = 0.3\n[page]\nenabled = false\n[limits]\nimages = 3\n"
    )
    assert any(path.startswith("/v1/jobs") for path in paths(app))
    assert app.state.vtr_gate.settings.limits.images == 3
    assert TestClient(app).get("/").status_code == 404


def test_a_batch_starts_nothing_of_a_server(tmp_path: Path) -> None:
    text = "[admin]\nport = 9\n[jobs]\nmemory_share = 0.3\n[limits]\nimages = 3\n"
    for batch in (False, True):
        _, app = attached(tmp_path, text, batch=batch)
        settings = app.state.vtr_gate.settings
        assert (settings.admin is None, settings.jobs is None) == (batch, batch)
        assert ("/v1/jobs" in paths(app)) is not batch
        assert (TestClient(app).get("/").status_code == 404) is batch
        assert settings.limits.images == 3


def test_a_wrong_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="tiers"):
        with_settings(tmp_path, "[tiers]\nauto = 0.5\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        app_with({"vtr": {"settings": str(tmp_path / "none.toml")}})
    with pytest.raises(ConfigurationError, match="settings is 5; it must be a path"):
        app_with({"vtr": {"settings": 5}})


@pytest.mark.parametrize("host", [None, "0.0.0.0"])
def test_jobs_for_everybody_stop_the_start(tmp_path: Path, host: str | None) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[jobs]\nmemory_share = 0.3\n")
    with pytest.raises(ConfigurationError, match="lets everybody"):
        app_with({"vtr": {"settings": str(file)}}, host)


def test_keys_that_come_later_are_refused_beside_vllms_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As those that are there at the start: a reload checks the same."""
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
    key = {"name": "k", "sha256": "0" * 64}
    engine: Any = Namespace(caches_prefixes=True)
    chooser = Namespace(family=None, check_tiers=lambda _: None)
    schedules: Any = Namespace(offer=Namespace(chooser=chooser))
    check_settings(ServerSettings(), engine, schedules)
    with pytest.raises(ConfigurationError, match="VLLM_ENABLE_RESPONSES_API_STORE"):
        check_settings(ServerSettings.model_validate({"keys": [key]}), engine, schedules)


def test_the_offer_is_what_the_callers_key_allows(tmp_path: Path) -> None:
    keys = [("a", "{}"), ("b", "{ maximum = 1.0 }")]
    table = '[[keys]]\nname = "{}"\nsha256 = "{}"\nbudget = {}\n'
    text = "[budget]\nmaximum = 0.5\n"
    text += "".join(table.format(name, hash_key(name.encode()), budget) for name, budget in keys)
    app = with_settings(tmp_path, text)
    settings = app.state.vtr_gate.settings
    offer = Offer.of(ScheduleChooser(ScheduleBook(GEOMETRY), settings.tiers))
    app.state.vtr = Namespace(settings=settings, schedules=Namespace(offer=offer))
    client = TestClient(app)
    for name, most in (("a", 0.5), ("b", 1.0)):
        answer = client.get("/v1/schedules", headers={"Authorization": f"Bearer {name}"})
        assert answer.json()["budget"]["maximum"] == answer.json()["budget"]["default"] == most
        assert ("full" in answer.json()["tiers"]) is (most == 1.0)


def test_errors_have_openai_form_and_the_gate_stands_before_the_routes(tmp_path: Path) -> None:
    digest = "0" * 64
    app = with_settings(tmp_path, f'[[keys]]\nname = "k"\nsha256 = "{digest}"\n')
    client = TestClient(app)
    refused = client.post("/v1/chat/completions", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert refused.headers["x-request-id"]
    missing = TestClient(app_with({})).get("/nosuch")
    assert (missing.status_code, missing.json()["error"]["message"]) == (404, "Not Found")
