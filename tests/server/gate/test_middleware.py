"""Who gets in, how often, and what every answer carries; each limit is crossed."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.server.gate.apps import ALL_SCOPES, Place, bearer, key
from vtr_server.gate.context import RequestContext
from vtr_server.gate.middleware import Gate, install
from vtr_server.policy.settings import AdminSettings, LimitSettings, ServerSettings
from vtr_vllm.errors import RateLimited

GUARDED = ("/v1/models", "/v1/jobs", "/metrics", "/admin/settings", "/reset_prefix_cache")
KEYED = ServerSettings(
    keys=(
        key("plain", "plain-key"),
        key("ops", "ops-key", scopes=("metrics", "admin")),
        key("jobs", "jobs-key", scopes=("jobs",)),
        key("all", "all-key", scopes=ALL_SCOPES),
    )
)


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def get(place: Place, path: str, **kw: Any) -> httpx.Response:
    return send(place, "GET", path, **kw)


def post(place: Place, path: str, **kw: Any) -> httpx.Response:
    return send(place, "POST", path, **kw)


def send(place: Place, method: str, path: str, **kw: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with place.client() as client:
            return await client.request(method, path, **kw)

    answer = run(once())
    assert isinstance(answer, httpx.Response)
    return answer


def code_of(answer: httpx.Response) -> Any:
    return answer.json()["error"]["code"]


# Every answer


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nosuch"])
def test_security_headers_are_on_every_answer(path: str) -> None:
    headers = get(Place(), path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store"


def test_a_route_sets_its_own_policy() -> None:
    from fastapi.responses import Response

    place = Place()
    own = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "max-age=60"}
    place.app.add_api_route("/page/x", lambda: Response("x", headers=own))
    headers = get(place, "/page/x").headers
    assert headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert headers.get_list("cache-control") == ["max-age=60"]
    assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("given", ["abc", "A.b:c_9-", "x" * 128])
def test_a_request_id_is_taken_over(given: str) -> None:
    answer = post(Place(), "/v1/echo", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == given == answer.json()["request_id"]


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\tb", "{}", "a/../b"])
def test_an_odd_request_id_is_replaced(given: str | None) -> None:
    answer = post(Place(), "/v1/echo", headers={} if given is None else {"X-Request-Id": given})
    made = answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert answer.json()["request_id"] == made, "the routes see what the client is told"


def test_refusals_carry_the_headers_too() -> None:
    answer = get(Place(KEYED), "/v1/models", headers={"X-Request-Id": "mine"})
    assert answer.status_code == 401
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-content-type-options"] == "nosniff"


# Keys and scopes


@pytest.mark.parametrize("path", GUARDED)
def test_nothing_without_a_key(path: str) -> None:
    for headers in ({}, bearer("wrong"), {"Authorization": "Basic plain-key"}):
        for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
            answer = send(Place(KEYED), method, path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    assert code_of(get(Place(KEYED), path)) == "invalid_api_key"


@pytest.mark.parametrize("path", ["/nosuch", "//v1/models", "/V1/models", "/v1/../health"])
def test_unknown_paths_are_guarded(path: str) -> None:
    assert get(Place(KEYED), path).status_code in (200, 401), "a client may resolve the dots"
    assert get(Place(KEYED), "/nosuch").status_code == 401


@pytest.mark.parametrize("path", ["/health", "/live", "/ready", "/page/app.js"])
def test_open_routes_need_none(path: str) -> None:
    assert get(Place(KEYED), path).status_code == 200


@pytest.mark.parametrize(
    ("secret", "allowed"),
    [
        ("plain-key", {"/v1/models"}),
        ("ops-key", {"/metrics", "/admin/settings", "/reset_prefix_cache"}),
        ("jobs-key", {"/v1/jobs"}),
        ("all-key", set(GUARDED)),
    ],
)
def test_scopes_hold(secret: str, allowed: set[str]) -> None:
    for path in GUARDED:
        answer = get(Place(KEYED), path, headers=bearer(secret))
        assert answer.status_code == (200 if path in allowed else 403), path
        if path not in allowed:
            assert code_of(answer) == "forbidden"


def test_the_key_never_shows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for secret in ("plain-key", "a-wrong-key"):
        answer = get(Place(KEYED), "/metrics", headers=bearer(secret))
        assert secret not in answer.text
    assert "plain-key" not in caplog.text
    assert "a-wrong-key" not in caplog.text


def test_the_routes_learn_who_asks() -> None:
    assert post(Place(KEYED), "/v1/echo", headers=bearer("plain-key")).json()["caller"] == "plain"
    assert post(Place(), "/v1/echo").json()["caller"] is None


def test_a_root_path_opens_nothing() -> None:
    place = Place(KEYED)
    place.app.root_path = "/api"
    assert get(place, "/api/v1/models").status_code == 401
    assert get(place, "/v1/models").status_code == 401
    assert get(place, "/api/health").status_code == 200
    assert get(place, "/api/v1/models", headers=bearer("plain-key")).status_code == 200


def test_an_open_server_lets_everybody_in() -> None:
    for path in ("/v1/models", "/v1/jobs", "/metrics"):
        assert get(Place(), path).status_code == 200


def test_an_open_server_has_no_admin() -> None:
    answer = post(Place(), "/admin/settings")
    assert answer.status_code == 404
    assert post(Place(), "/reset_prefix_cache").status_code == 200, "vLLM's own stays as it is"


# The admin port


def test_what_moved_to_the_admin_port_is_gone_from_the_main_one() -> None:
    place = Place(ServerSettings.model_validate({**KEYED.model_dump(), "admin": {}}))
    for path in ("/health", "/live", "/ready", "/metrics", "/admin/settings"):
        assert get(place, path, headers=bearer("all-key")).status_code == 404, path
    assert get(place, "/v1/models", headers=bearer("all-key")).status_code == 200


@pytest.mark.parametrize(
    ("settings", "path", "status"),
    [
        (ServerSettings(admin={}), "/metrics", 200),  # type: ignore[arg-type]
        (ServerSettings(admin={}), "/admin/settings", 200),  # type: ignore[arg-type]
        (ServerSettings(admin={}, keys=(key("a", "a"),)), "/admin/settings", 200),  # type: ignore[arg-type]
        (ServerSettings(admin={}, keys=KEYED.keys), "/admin/settings", 401),  # type: ignore[arg-type]
        (ServerSettings(admin={}, keys=KEYED.keys), "/metrics", 200),  # type: ignore[arg-type]
    ],
)
def test_the_admin_port_asks_for_a_key_where_one_is_for_it(
    settings: ServerSettings, path: str, status: int
) -> None:
    place = Place(settings)
    app = place.app

    async def on_admin_port(scope: Any, receive: Any, send: Any) -> None:
        marked = RequestContext(on_admin_port=True).put_into(scope)
        await app(marked, receive, send)  # type: ignore[arg-type]

    place.app = on_admin_port  # type: ignore[assignment]
    assert get(place, path).status_code == status


# Allowances


@pytest.mark.parametrize(
    ("host", "keys", "statuses"),
    [
        ("127.0.0.1", (), {None: 200}),
        ("0.0.0.0", (), {None: 403}),
        ("0.0.0.0", KEYED.keys[:1], {None: 403, "plain-key": 403}),
        ("0.0.0.0", KEYED.keys, {None: 401, "plain-key": 403, "ops-key": 200}),
    ],
)
def test_admin_routes_that_others_reach_need_a_key(
    host: str, keys: Any, statuses: dict[str | None, int]
) -> None:
    place = Place(ServerSettings(admin=AdminSettings(host=host), keys=keys))

    async def on_admin_port(scope: Any, receive: Any, send: Any) -> None:
        await place.app(RequestContext(on_admin_port=True).put_into(scope), receive, send)

    client = TestClient(on_admin_port, base_url="http://127.0.0.1")
    for secret, status in statuses.items():
        headers = bearer(secret) if secret else {}
        answer = client.get("/admin/settings", headers=headers)
        assert answer.status_code == status, secret
        if status == 403 and secret is None:
            assert "no key has the scope admin" in answer.json()["error"]["message"]
    assert client.get("/metrics").status_code == 200
    assert client.get("/live").status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [(None, 200), ("http://localhost:8000", 200), ("https://evil.example", 403)],
)
def test_pages_from_elsewhere_start_no_jobs_where_no_key_is_needed(
    origin: str | None, status: int
) -> None:
    headers = {"Host": "localhost:8000"} | ({"Origin": origin} if origin else {})
    assert post(Place(), "/v1/jobs", headers=headers).status_code == status
    assert get(Place(), "/v1/models", headers=headers).status_code == 200, "CORS is vLLM's"
    keyed = Place(KEYED)
    assert post(keyed, "/v1/jobs", headers=headers | bearer("jobs-key")).status_code == 200


def test_where_no_key_is_needed_a_name_made_to_lead_here_reads_nothing() -> None:
    """A browser sends no Origin with what a page reads of its own host (DNS rebinding)."""
    rebound = {"Host": "evil.example:8000"}
    assert get(Place(), "/v1/jobs", headers=rebound).status_code == 403
    place = Place(ServerSettings(admin=AdminSettings(host="127.0.0.1")))
    app = place.app

    async def on_admin_port(scope: Any, receive: Any, send: Any) -> None:
        await app(RequestContext(on_admin_port=True).put_into(scope), receive, send)

    client = TestClient(on_admin_port, base_url="http://127.0.0.1")
    assert client.get("/admin/settings").status_code == 200
    assert client.get("/admin/settings", headers=rebound).status_code == 403
    for path in ("/metrics", "/live", "/ready"):  # of probes, which name the host as they know it
        assert client.get(path, headers=rebound).status_code == 200
    keyed = Place(KEYED)
    answer = get(keyed, "/v1/jobs", headers=rebound | bearer("jobs-key"))
    assert answer.status_code == 200


def test_other_settings_hold_for_the_next_request() -> None:
    place = Place(KEYED)

    async def revoke() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with place.client() as client:
            plain = bearer("plain-key")
            begun = [
                asyncio.create_task(client.post(path, headers=plain))
                for path in ("/v1/slow", "/v1/stream")
            ]
            while place.gate.occupancy.in_flight < len(begun):
                await asyncio.sleep(0)
            place.gate.adopt(ServerSettings(keys=KEYED.keys[1:], limits=LimitSettings(in_flight=1)))
            after = [await client.get("/v1/models", headers=plain)]
            after.append(await client.get("/v1/models", headers=bearer("all-key")))
            place.release.set()
            return after, await asyncio.gather(*begun)

    (revoked, full), begun = run(revoke())
    assert (revoked.status_code, code_of(revoked)) == (401, "invalid_api_key")
    assert (full.status_code, code_of(full)) == (429, "overloaded"), "those inside count"
    assert [answer.status_code for answer in begun] == [200, 200]
    assert begun[1].text.endswith("data: [DONE]\n\n")
    assert get(place, "/v1/models", headers=bearer("all-key")).status_code == 200


def test_a_drain_shows() -> None:
    place = Place()
    run(place.gate.drain(0.0))
    assert REGISTRY.get_sample_value("vtr_draining") == 1
    assert get(place, "/live").status_code == 200, "a restart would cut off what is inside"
    before = REGISTRY.get_sample_value("vtr_refused_requests_total", {"reason": "draining"})
    assert get(place, "/ready").status_code == 503
    after = REGISTRY.get_sample_value("vtr_refused_requests_total", {"reason": "draining"})
    assert after == before, "a probe is no request that was refused"


def test_requests_per_minute_of_a_key() -> None:
    place = Place(
        ServerSettings(
            keys=(key("slow", "slow", requests_per_minute=3), key("other", "other")),
        )
    )

    async def several() -> list[httpx.Response]:
        async with place.client() as client:
            return [await client.get("/v1/models", headers=bearer("slow")) for _ in range(4)]

    answers = run(several())
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert code_of(answers[-1]) == "rate_limited"
    assert answers[-1].headers["retry-after"] == "20"
    assert get(place, "/v1/models", headers=bearer("other")).status_code == 200
    place.clock.now = 20.0
    assert get(place, "/v1/models", headers=bearer("slow")).status_code == 200
    assert get(place, "/v1/models", headers=bearer("slow")).status_code == 429


def test_requests_per_minute_without_keys_are_counted_by_address() -> None:
    place = Place(ServerSettings(limits={"requests_per_minute": 1}))  # type: ignore[arg-type]

    async def ask(address: str) -> int:
        transport = httpx.ASGITransport(place.app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/v1/models")).status_code

    asked = [run(ask(a)) for a in ("192.0.2.1", "192.0.2.1", "192.0.2.2")]
    assert asked == [200, 429, 200]
    assert get(place, "/health").status_code == 200, "health is never limited"


def test_vision_tokens_are_owed_after_they_are_spent() -> None:
    place = Place(ServerSettings(keys=(key("a", "a", vision_tokens_per_minute=600),)))
    headers = bearer("a")
    assert post(place, "/v1/echo", headers=headers).status_code == 200
    place.gate.charge(place.seen[-1], 600)
    assert post(place, "/v1/echo", headers=headers).status_code == 200, "used up, not in debt"
    place.gate.charge(place.seen[-1], 50)
    refused = post(place, "/v1/echo", headers=headers)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "5"
    assert "vision tokens" in refused.text
    place.clock.now = 5.0
    assert post(place, "/v1/echo", headers=headers).status_code == 200


def test_no_allowance_is_no_limit() -> None:
    place = Place(ServerSettings(keys=(key("a", "a"),)))
    assert post(place, "/v1/echo", headers=bearer("a")).status_code == 200
    place.gate.charge(place.seen[-1], 1e12)
    assert post(place, "/v1/echo", headers=bearer("a")).status_code == 200


def test_requests_that_come_together_overdraw_by_one_of_them() -> None:
    """All of them pass the gate, which knows no costs; what each costs is known at admission."""
    place = Place(ServerSettings(keys=(key("a", "a", vision_tokens_per_minute=600),)))
    for _ in range(8):
        assert post(place, "/v1/echo", headers=bearer("a")).status_code == 200
    charged, refused = 0, []
    for context in place.seen:
        try:
            place.gate.charge(context, 250)  # as admission does, prompt by prompt
            charged += 250
        except RateLimited as err:
            refused.append(err.retry_after)
    assert charged == 750, "600, and what one request cost beyond it"
    assert refused == [15] * 5
    place.gate.charge(place.seen[2], 250)  # another prompt of one that was let in
    with pytest.raises(RateLimited):
        place.gate.charge(place.seen[3], 250)


@pytest.mark.parametrize("own", [None, 0, 1, 5])
@pytest.mark.parametrize("of_each", [0, 2])
def test_what_a_key_leaves_out_is_the_servers(own: int | None, of_each: int) -> None:
    given = {} if own is None else {"requests_per_minute": own}
    limits = {"requests_per_minute": of_each}
    place = Place(ServerSettings(keys=(key("a", "a", **given),), limits=limits))  # type: ignore[arg-type]
    allowed = of_each if own is None else own
    statuses = [get(place, "/v1/models", headers=bearer("a")).status_code for _ in range(7)]
    passed = min(allowed, 7) if allowed else 7
    assert statuses == [200] * passed + [429] * (7 - passed)


async def trickle(until: asyncio.Event) -> AsyncIterator[bytes]:
    """A body that goes on until it is told to end."""
    yield b"x"
    await until.wait()
    yield b"x"


def test_bodies_that_never_end_block_nobody() -> None:
    """More of them than may be in flight: another caller is answered all the same."""
    keys = (key("slow", "slow"), key("other", "other"))
    limits = {"in_flight": 2, "uploads": 6, "uploads_per_caller": 4}
    place = Place(ServerSettings(keys=keys, limits=limits))  # type: ignore[arg-type]

    async def crowd() -> tuple[list[httpx.Response], list[httpx.Response], list[httpx.Response]]:
        end = asyncio.Event()
        async with place.client() as client:

            def upload(who: str) -> asyncio.Task[httpx.Response]:
                body = trickle(end)
                return asyncio.create_task(
                    client.post("/v1/echo", content=body, headers=bearer(who))
                )

            slow = [upload("slow") for _ in range(4)]
            while place.gate.occupancy.uploads < 4:
                await asyncio.sleep(0.001)
            refused = [await client.post("/v1/echo", content=b"x", headers=bearer("slow"))]
            others = [
                await client.post("/v1/echo", content=b"x", headers=bearer("other"))
                for _ in range(3)
            ]
            end.set()
            return refused, others, await asyncio.gather(*slow)

    refused, others, slow = run(crowd())
    assert [(a.status_code, code_of(a)) for a in refused] == [(429, "caller_busy")]
    assert [a.status_code for a in others] == [200, 200, 200]
    assert [a.status_code for a in slow] == [200] * 4
    occupancy = place.gate.occupancy
    assert (occupancy.uploads, occupancy.in_flight) == (0, 0)


def test_a_body_that_ends_when_all_places_are_taken_is_refused() -> None:
    place = Place(ServerSettings(limits={"in_flight": 1}))  # type: ignore[arg-type]

    async def crowd() -> tuple[httpx.Response, httpx.Response]:
        end = asyncio.Event()
        async with place.client() as client:
            late = asyncio.create_task(client.post("/v1/echo", content=trickle(end)))
            while not place.gate.occupancy.uploads:
                await asyncio.sleep(0.001)
            inside = asyncio.create_task(client.post("/v1/slow"))
            while not place.gate.occupancy.in_flight:
                await asyncio.sleep(0.001)
            end.set()
            refused = await late
            place.release.set()
            return refused, await inside

    refused, inside = run(crowd())
    assert (refused.status_code, code_of(refused)) == (429, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert inside.status_code == 200
    assert place.seen == [], "the route saw nothing of it"
    assert place.gate.occupancy.in_flight == place.gate.occupancy.uploads == 0


def test_a_key_may_have_a_bound_of_its_own() -> None:
    keys = (key("a", "a", in_flight=1), key("b", "b"), key("c", "c", in_flight=0))
    limits = {"in_flight_per_caller": 2}
    place = Place(ServerSettings(keys=keys, limits=limits))  # type: ignore[arg-type]

    async def most(who: str) -> int:
        """How many of four requests of a key are inside at once."""
        place.release.clear()
        before = place.gate.occupancy.in_flight
        async with place.client() as client:
            asked = [
                asyncio.create_task(client.post("/v1/slow", headers=bearer(who))) for _ in range(4)
            ]
            # each is inside, or refused
            while place.gate.occupancy.in_flight - before + sum(a.done() for a in asked) < 4:
                await asyncio.sleep(0.001)
            inside = place.gate.occupancy.in_flight - before
            place.release.set()
            answers = await asyncio.gather(*asked)
        statuses = Counter(answer.status_code for answer in answers)
        assert (statuses[200], statuses[429]) == (inside, 4 - inside)
        return inside

    async def each() -> list[int]:
        return [await most(who) for who in "abc"]

    assert run(each()) == [1, 2, 4]


def test_no_more_in_flight_than_allowed() -> None:
    place = Place(ServerSettings(limits={"in_flight": 2}))  # type: ignore[arg-type]

    async def crowd() -> tuple[httpx.Response, httpx.Response, list[httpx.Response]]:
        async with place.client() as client:
            inside = [asyncio.create_task(client.post("/v1/slow")) for _ in range(2)]
            while place.gate.occupancy.in_flight < 2:
                await asyncio.sleep(0.001)
            refused = await client.post("/v1/slow")
            health = await client.get("/health")
            place.release.set()
            return refused, health, await asyncio.gather(*inside)

    refused, health, inside = run(crowd())
    assert (refused.status_code, code_of(refused)) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert health.status_code == 200
    assert [a.status_code for a in inside] == [200, 200]
    assert place.gate.occupancy.in_flight == 0
    assert post(place, "/v1/echo").status_code == 200


# Draining


def test_a_draining_server_finishes_and_takes_nothing_new() -> None:
    place = Place()

    async def drain() -> tuple[list[httpx.Response], httpx.Response]:
        async with place.client() as client:
            begun = asyncio.create_task(client.post("/v1/stream"))
            while not place.gate.occupancy.in_flight:
                await asyncio.sleep(0.001)
            drained = asyncio.create_task(place.gate.drain(30))
            await asyncio.sleep(0)
            paths = ("/v1/models", "/health", "/ready", "/live", "/metrics")
            answers = [await client.get(path) for path in paths]
            assert not drained.done()
            place.release.set()
            await drained
            return answers, await begun

    answers, begun = run(drain())
    assert [a.status_code for a in answers] == [503, 503, 503, 200, 200]
    assert code_of(answers[0]) == code_of(answers[1]) == "draining"
    assert int(answers[0].headers["retry-after"]) >= 1
    assert begun.text.endswith("data: [DONE]\n\n")
    assert "error" not in begun.text


def test_a_drain_ends_even_if_a_request_does_not() -> None:
    place = Place()

    async def drain() -> httpx.Response:
        async with place.client() as client:
            begun = asyncio.create_task(client.post("/v1/slow"))
            while not place.gate.occupancy.in_flight:
                await asyncio.sleep(0.001)
            await place.gate.drain(0.05)
            return await begun

    answer = run(drain())
    assert (answer.status_code, code_of(answer)) == (503, "draining")
    assert place.seen == ["aborted"]


# WebSockets


def test_a_websocket_is_guarded() -> None:
    client = TestClient(Place(KEYED).app)
    for headers in ({}, bearer("wrong"), bearer("jobs-key")):
        with (
            pytest.raises((WebSocketDisconnect, httpx.HTTPError, Exception)) as refused,
            client.websocket_connect("/v1/realtime", headers=headers),
        ):
            pass
        assert getattr(refused.value, "status_code", 0) in (401, 403)


def test_a_websocket_with_a_key_works() -> None:
    place = Place(KEYED)
    client = TestClient(place.app)
    with client.websocket_connect("/v1/realtime", headers=bearer("plain-key")) as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
        assert place.gate.occupancy.in_flight == 1
    place.release.set()


# The rest


def test_refusals_are_counted() -> None:
    def counted() -> float:
        labels = {"reason": "invalid_api_key"}
        return REGISTRY.get_sample_value("vtr_refused_requests_total", labels) or 0.0

    before = counted()
    get(Place(KEYED), "/v1/models")
    assert counted() == before + 1


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"status": 200}', "ok"),
        (b'{"status": 404}', "client_error"),
        (b'{"status": 503}', "error"),
        (b'{"other": 1}', "error"),  # a fault of the route: no handler answers here
        (b"{", "client_error"),
        (b'{"status": "no"}', "client_error"),
        (b" " * 2000, "client_error"),
    ],
)
def test_every_request_is_counted_once_by_how_it_ended(body: bytes, outcome: str) -> None:
    place = Place(ServerSettings(limits=LimitSettings(body_bytes=1000)))
    before = outcomes()
    post(place, CHAT, content=body, headers={"Content-Type": "application/json"})
    assert outcomes() == before + Counter([outcome])


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "ok"), (400, "client_error"), (500, "error")]
)
def test_who_counts_a_request_itself_is_told_what_was_answered(status: int, outcome: str) -> None:
    place, before = Place(), outcomes()
    post(place, CHAT, json={"status": status, "watched": 1})
    assert place.seen == [outcome]
    assert outcomes() == before


def test_a_client_that_leaves_within_its_body_is_counted_as_aborted() -> None:
    place = Place()
    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def receive() -> Any:
        return messages.pop(0)

    async def send(_: Any) -> None:
        return

    before = outcomes()
    run(place.app(scope, receive, send))
    assert outcomes() == before + Counter(["aborted"])


def test_lists_and_probes_are_no_requests() -> None:
    place, before = Place(), outcomes()
    get(place, "/v1/models")
    get(place, "/health")
    post(place, "/v1/echo", content=b"x")
    assert outcomes() == before


def outcomes() -> Counter[str]:
    """Of all series of vtr_requests_total."""
    found: Counter[str] = Counter()
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            if sample.name == "vtr_requests_total":
                found[sample.labels["outcome"]] += int(sample.value)
    return found


def test_install_puts_the_gate_in_front() -> None:
    from fastapi import FastAPI

    app = FastAPI()
    gate = install(app, KEYED)
    assert isinstance(gate, Gate)
    assert app.state.vtr_gate is gate
    assert TestClient(app).get("/v1/models").status_code == 401
