"""The admin port: a real listener beside the main one, with the same application behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from tests.running import free_port
from tests.server.gate.apps import bearer, key
from vtr_server.gate.middleware import install
from vtr_server.http.routes import refuse
from vtr_server.operations import background
from vtr_server.operations.admin import AdminServer, describe_settings, router, start_admin
from vtr_server.operations.metrics import observe_ready
from vtr_server.policy.settings import AdminSettings, ServerSettings
from vtr_vllm.errors import ConfigurationError, EngineDead, VTRError

KEYS = (key("ops", "ops-key", scopes=("admin",)), key("plain", "plain-key"))


async def dead() -> EngineDead:
    return EngineDead("its process has ended")


def on_both_ports(settings: ServerSettings, ask: Callable[[Any, Any], Any]) -> Any:
    """Call ``ask`` with a client of the main application and one of the admin port."""
    app = FastAPI()
    install(app, settings)
    app.include_router(router)
    app.add_exception_handler(VTRError, refuse)  # type: ignore[arg-type]
    app.state.vtr = SimpleNamespace(
        schedules=SimpleNamespace(reload=lambda: ["a.json: broken"]),
        engine=SimpleNamespace(why_unhealthy=dead),
    )
    app.add_api_route("/health", lambda: "fine")
    app.add_api_route("/metrics", lambda: "vtr_requests_total 1")
    app.add_api_route("/v1/models", lambda: "models")

    async def both() -> Any:
        port = await start_admin(app, settings)
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://main") as main,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as admin,
        ):
            return await ask(main, admin)

    return asyncio.run(both())


def with_admin(**more: Any) -> ServerSettings:
    return ServerSettings(admin=AdminSettings(port=0), **more)


def test_metrics_health_and_admin_are_there_and_nothing_else() -> None:
    async def ask(main: Any, admin: Any) -> None:
        for path in ("/health", "/live", "/metrics", "/admin/settings"):
            assert (await admin.get(path)).status_code == 200, path
            assert (await main.get(path)).status_code == 404, path
        for path in ("/v1/models", "/", "/docs", "/ping"):
            answer = await admin.get(path)
            assert answer.status_code == 404, path
            assert answer.json()["error"]["code"] == 404
        assert (await main.get("/v1/models")).status_code == 200

    on_both_ports(with_admin(), ask)


def test_admin_routes_want_the_key_that_is_for_them() -> None:
    async def ask(_: Any, admin: Any) -> None:
        assert (await admin.get("/metrics")).status_code == 200
        assert (await admin.post("/admin/drain")).status_code == 401
        refused = await admin.post("/admin/drain", headers=bearer("plain-key"))
        assert refused.status_code == 403
        assert (await admin.get("/admin/settings", headers=bearer("ops-key"))).status_code == 200

    on_both_ports(with_admin(keys=KEYS), ask)


def test_drain_turns_health_red_and_takes_nothing_new() -> None:
    async def ask(main: Any, admin: Any) -> None:
        assert (await admin.post("/admin/drain")).json() == {"draining": True, "in_flight": 0}
        assert (await admin.get("/health")).status_code == 503
        assert (await main.get("/v1/models")).status_code == 503
        assert (await admin.get("/metrics")).status_code == 200

    on_both_ports(with_admin(), ask)


def test_a_probe_tells_no_metric() -> None:
    """Of several API servers it may reach any, and the first alone tells what the engine knows once."""

    async def ask(_: Any, admin: Any) -> None:
        answer = await admin.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")

    observe_ready(True)
    on_both_ports(with_admin(), ask)
    assert REGISTRY.get_sample_value("vtr_ready") == 1


def test_reload_says_what_was_rejected() -> None:
    async def ask(_: Any, admin: Any) -> None:
        answer = await admin.post("/admin/schedules/reload")
        assert answer.json() == {"rejected": ["a.json: broken"]}

    on_both_ports(with_admin(), ask)


def test_a_page_in_a_browser_cannot_use_admin_routes() -> None:
    async def ask(_: Any, admin: Any) -> None:
        answer = await admin.post("/admin/drain", headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403
        assert (await admin.get("/health")).status_code == 200

    on_both_ports(with_admin(), ask)


def test_the_settings_are_told_without_hashes() -> None:
    settings = with_admin(keys=KEYS)
    told = describe_settings(settings)
    assert [key["name"] for key in told["keys"]] == ["ops", "plain"]
    assert not [key.sha256 for key in KEYS if key.sha256 in str(told)]
    assert told["limits"]["body_bytes"] == settings.limits.body_bytes


def test_only_the_first_process_listens_and_only_if_asked() -> None:
    assert asyncio.run(start_admin(FastAPI(), with_admin(), rank=1)) is None
    assert asyncio.run(start_admin(FastAPI(), ServerSettings())) is None


def test_an_address_that_is_taken_is_named() -> None:
    async def twice() -> None:
        port = await start_admin(FastAPI(), with_admin())
        assert port is not None
        await start_admin(FastAPI(), ServerSettings(admin=AdminSettings(port=port)))

    with pytest.raises(ConfigurationError, match=r"port \d+ cannot be listened on"):
        asyncio.run(twice())


def test_a_listener_that_fails_listens_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the metrics of a server that answers well would be gone until somebody restarts it."""
    serve, begun = AdminServer.serve, []

    async def fails_once(self: AdminServer, sockets: list[Any] | None = None) -> None:
        begun.append(self)
        if len(begun) == 1:
            assert sockets is not None
            sockets[0].close()
            raise OSError("out of files")
        await serve(self, sockets=sockets)

    monkeypatch.setattr(AdminServer, "serve", fails_once)
    monkeypatch.setattr(background, "FIRST_WAIT_SECONDS", 0.0)

    async def listens() -> None:
        app = FastAPI()
        app.include_router(router)
        port = free_port()  # the same for both listeners
        settings = ServerSettings(admin=AdminSettings(port=port))
        install(app, settings)
        assert await start_admin(app, settings) == port
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(60):
                while True:
                    try:
                        assert (await client.get("/live")).status_code == 200
                        return
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)

    asyncio.run(listens())
    assert len(begun) == 2
