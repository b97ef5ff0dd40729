"""Two API keys at one server: gate, connector and vLLM's renderer, as they are put together there."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from fastapi import Request
from fastapi.responses import JSONResponse

from tests.renderers import image_keys, tiny_renderer
from tests.server.gate.apps import Place, bearer, key
from tests.server.pictures import image
from vtr_server.http.errors import error_response
from vtr_server.media.connector import install_media_connector
from vtr_server.policy.settings import LimitSettings, ServerSettings
from vtr_vllm.errors import VTRError

SETTINGS = ServerSettings(
    keys=(key("ann", "ann-key"), key("ben", "ben-key")),
    limits=LimitSettings(image_pixels=100 * 100, decoded_pixels=100 * 100, images=3),
)
RED, GREEN = image("PNG", (60, 60)), image("PNG", (60, 61))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    install_media_connector(SETTINGS.media, SETTINGS.limits)
    made = Place(SETTINGS)
    renderer = tiny_renderer()

    async def keys(parts: list[dict[str, Any]], _: Request) -> JSONResponse:
        try:
            return JSONResponse(await image_keys(renderer, *parts))
        except VTRError as err:
            return error_response(err)

    made.app.add_api_route("/v1/keys", keys, methods=["POST"])
    yield made
    renderer.shutdown()


def part(data: bytes | None, uuid: str | None = None) -> dict[str, Any]:
    url = data and {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}
    return {"type": "image_url", "image_url": url} | ({"uuid": uuid} if uuid else {})


def ask(place: Place, *requests: tuple[str, list[dict[str, Any]]]) -> list[Any]:
    """What each of several requests is answered, all sent at once: keys of caches, or a code."""

    async def one(client: Any, name: str, parts: list[dict[str, Any]]) -> Any:
        answer = await client.post("/v1/keys", json=parts, headers=bearer(f"{name}-key"))
        found = answer.json()
        return tuple(found) if isinstance(found, list) else found["error"]["code"]

    async def all_of_them() -> list[Any]:
        async with place.client() as client:
            return await asyncio.gather(*(one(client, *request) for request in requests))

    found = asyncio.run(all_of_them())
    assert place.gate.pixels.held == 0
    return found


def test_one_uuid_of_two_keys_is_two_pictures(place: Place) -> None:
    asked = [(name, [part(data, "scan-1")]) for name in ("ann", "ben") for data in (RED, GREEN)]
    found = ask(place, *asked)
    assert len(set(found)) == 4
    assert ask(place, *asked) == found  # each finds its own again


def test_nobody_reads_a_picture_by_its_uuid(place: Place) -> None:
    ask(place, ("ann", [part(RED, "scan-2")]))
    for name in ("ann", "ben"):
        assert ask(place, (name, [part(None, "scan-2")])) == ["invalid_media"]


def test_pictures_without_a_uuid_are_told_apart_by_their_bytes(place: Place) -> None:
    ann, ben, other = ask(place, ("ann", [part(RED)]), ("ben", [part(RED)]), ("ben", [part(GREEN)]))
    assert ann == ben != other


def test_all_requests_share_one_room_for_pixels(place: Place) -> None:
    """Two pictures fit; six requests of two each are answered one after the other."""
    found = ask(place, *[(name, [part(RED), part(GREEN)]) for name in ("ann", "ben") * 3])
    assert {len(keys) for keys in found} == {2}
    large = part(image("PNG", (80, 80)))
    assert ask(place, ("ann", [large, large])) == ["invalid_media"]
    assert ask(place, ("ann", [part(RED)] * 4)) == ["too_many_images"]
