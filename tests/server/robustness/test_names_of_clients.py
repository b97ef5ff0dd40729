"""What a client calls its things names nobody else's: pictures, requests, responses, caches."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.server.conftest import NAME, Server
from tests.server.pictures import serve
from vtr_vllm.demo import sample

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
A, B = (sample("test", index) for index in (0, 3))


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def part(item: Any | None, **more: Any) -> dict[str, Any]:
    url = item and {"url": f"data:image/png;base64,{png(item.image)}"}
    return {"type": "image_url", "image_url": url, **more}


def body(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    asked = {"model": NAME, "max_tokens": 3, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    content = [*parts, {"type": "text", "text": A.question}]
    return {**asked, "messages": [{"role": "user", "content": content}], **more}


def seen(server: Server, *parts: dict[str, Any], **more: Any) -> dict[str, float]:
    """The likeliest first tokens, with their log-probabilities: what the model made of a picture."""
    with server.client() as client:
        answer = client.post(CHAT, json=body(*parts, **more))
    assert answer.status_code == 200, answer.text
    first = answer.json()["choices"][0]["logprobs"]["content"][0]
    return {top["token"]: top["logprob"] for top in first["top_logprobs"]}


def code(answer: httpx.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("budget", [1.0, 0.5])
def test_a_uuid_of_another_picture_changes_nothing(server: Server, budget: float) -> None:
    name, vtr = f"scan-{budget}", {"budget": budget}
    of_a, of_b = (seen(server, part(item), vtr=vtr) for item in (A, B))
    assert of_a != pytest.approx(of_b, abs=0.05)
    for _ in range(2):
        assert seen(server, part(A, uuid=name), vtr=vtr) == pytest.approx(of_a, abs=0.05)
        assert seen(server, part(B, uuid=name), vtr=vtr) == pytest.approx(of_b, abs=0.05)


def test_a_uuid_alone_reads_nothing(server: Server) -> None:
    seen(server, part(A, uuid="mine"))
    named = [
        {"type": "image_url", "image_url": None, "uuid": "mine"},
        {"image_url": {}, "uuid": "mine"},
    ]
    named += [{"image_pil": None, "uuid": "mine"}]
    with server.client() as client:
        for given in named:
            for parts in ([given], [part(B), given]):
                answer = client.post(CHAT, json=body(*parts))
                assert answer.status_code == 400, answer.text
            assert code(client.post(CHAT, json=body(given))) == (400, "invalid_media")
        assert client.get("/health").status_code == 200


def test_no_part_makes_the_server_open_a_path_or_an_address(server: Server) -> None:
    """Of a type that vLLM has for callers in Python: Transformers would open either."""

    async def ask() -> list[tuple[int, Any]]:
        async with serve(base64.b64decode(png(A.image))) as address:
            wanted = [f"{address}/image", "/etc/hostname", [[[0, 0, 0]]], 5]
            async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
                parts = [{"image_pil": value, **m} for value in wanted for m in ({"uuid": "x"},)]
                parts += [{"image_pil": value, "type": "image_pil"} for value in wanted]
                return [code(await client.post(CHAT, json=body(p))) for p in parts]

    assert asyncio.run(ask()) == [(400, "invalid_media")] * 8


def test_two_requests_of_one_id_are_two_requests(server: Server) -> None:
    """The one that leaves takes the other not with it."""
    headers = {"X-Request-Id": "the-same"}
    all_begun = threading.Barrier(4)

    def ask(leaves: bool) -> str:
        """The answer's text; of one that leaves, what came before it did."""
        asked = body(part(A), max_tokens=400, ignore_eos=True, request_id="the-same", stream=True)
        said: list[str] = []
        with (
            server.client() as client,
            client.stream("POST", CHAT, json=asked, headers=headers) as answer,
        ):
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    if not said:
                        all_begun.wait(120)
                    choices = json.loads(line.removeprefix("data: "))["choices"]
                    said += [choice["delta"].get("content") or "" for choice in choices]
                    if leaves:
                        break
        return "".join(said)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, [False, True, False, True]))
    assert answers[0] == answers[2]
    for left in (answers[1], answers[3]):
        assert len(left) < len(answers[0]), "it left before its end"
        assert answers[0].startswith(left)


def test_a_salt_of_another_client_changes_no_answer(server: Server) -> None:
    of_b = seen(server, part(B))
    seen(server, part(A), cache_salt="shared")
    assert seen(server, part(B), cache_salt="shared") == pytest.approx(of_b, abs=0.05)


def test_a_response_cannot_be_read_by_its_id(server: Server) -> None:
    asked = {"model": NAME, "input": "what?", "max_output_tokens": 4, "store": True}
    with server.client() as client:
        answer = client.post("/v1/responses", json={**asked, "request_id": "resp_mine"})
        assert answer.status_code == 200, answer.text
        assert client.get(f"/v1/responses/{answer.json()['id']}").status_code == 404
        more = client.post("/v1/responses", json={**asked, "previous_response_id": "resp_mine"})
        assert more.status_code == 404


@pytest.mark.parametrize("route", [CHAT, "/v1/responses", "/v1/messages"])
def test_a_picture_is_the_same_on_every_route(server: Server, route: str) -> None:
    """16-bit greyscale, which vLLM's own reader clips at 255."""
    grey = A.image.convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)

    def answer(image: Image.Image) -> str:
        data, question = png(image), A.question
        url = f"data:image/png;base64,{data}"
        text = {"type": "text", "text": question}
        asked: dict[str, Any] = {"model": NAME, "temperature": 0}
        if route == CHAT:
            content = [{"type": "image_url", "image_url": {"url": url}}, text]
            asked |= {"max_tokens": 4, "messages": [{"role": "user", "content": content}]}
        elif route == "/v1/messages":
            source = {"type": "base64", "media_type": "image/png", "data": data}
            content = [{"type": "image", "source": source}, text]
            asked |= {"max_tokens": 4, "messages": [{"role": "user", "content": content}]}
        else:
            content = [{"type": "input_image", "image_url": url, "detail": "auto"}]
            content += [{"type": "input_text", "text": question}]
            asked |= {"max_output_tokens": 4, "input": [{"role": "user", "content": content}]}
        with server.client() as client:
            found = client.post(route, json=asked)
        assert found.status_code == 200, found.text
        said = found.json()
        return str(
            (said.get("choices") and said["choices"][0]["message"]["content"])
            or said.get("content")
            or said["output"][-1]["content"]
        )

    assert answer(wide) == answer(grey.convert("RGB"))
