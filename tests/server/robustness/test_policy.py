"""No route goes round the policy: every route that leads to the engine, with keys, bounds and tricks."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.server.bad_input import CHAT, COMPLETION, chat_body, data_url, picture
from tests.server.conftest import NAME, SETTINGS, Server, checkpoint, serve, store_schedules
from tests.server.robustness.watching import settled, total
from vtr_server.gate.keys import hash_key

RESPONSES, MESSAGES, BATCH = "/v1/responses", "/v1/messages", "/v1/chat/completions/batch"
INVOCATIONS, TOKENS = "/invocations", "/inference/v1/generate"
SYSTEM_ONE, SCORING = "/v1/systemone", "/generative_scoring"
FEW, MANY = 96, 3000
AT_ONCE = 8
URL = data_url(picture())
IMAGE_TOKEN = json.loads((checkpoint() / "config.json").read_text())["image_token_index"]
KEYS: dict[str, tuple[float, float]] = {
    "narrow": (0.25, 0.5),
    "inherits": (0.125, 1.0),
    "full": (1.0, 1.0),
    "economic": (0.125, 0.25),
}
"""Name, and secret, of a key -> its bounds."""
POLICY = (
    SETTINGS
    + "\n[budget]\nminimum = 0.125\n"
    + "".join(
        f'\n[[keys]]\nname = "{name}"\nsha256 = "{hash_key(name.encode())}"\n'
        + (f"budget = {{ minimum = {low}, maximum = {high} }}\n" if name != "inherits" else "")
        for name, (low, high) in KEYS.items()
    )
    + f'\n[[keys]]\nname = "ops"\nsha256 = "{hash_key(b"ops")}"\nscopes = ["metrics"]\n'
)
WIRE: tuple[dict[str, Any], ...] = (
    {"vtr_keep": [1.0] * 6 + [0.01] * 6, "vtr_rules": ["last"]},
    {"vtr_keep": [1.0] * 12, "vtr_rules": []},
    {"vtr_floor": 1.0},
    {"vtr_trace": "a"},
)

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with keys and bounds, and every route that leads to the engine turned on."""
    schedules, folder = (tmp_path_factory.mktemp(name) for name in ("schedules", "server"))
    store_schedules(schedules)
    with pytest.MonkeyPatch.context() as patch:
        # the engine need not import all again; the server of all tests starts it as vLLM does
        patch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
        yield from serve(schedules, folder, "--enable-scale-out", policy=POLICY)


def body_of(path: str, images: int = 1) -> dict[str, Any]:
    """A small request to a route, with as many images as it takes."""
    chat = chat_body(NAME, max_tokens=2)
    content = chat["messages"][0]["content"]
    content[:1] = content[:1] * images
    if path in (CHAT, INVOCATIONS):
        return chat
    if path == BATCH:
        return chat | {"messages": [chat["messages"], chat["messages"]]}
    if path == COMPLETION:
        return {"model": NAME, "prompt": "what is", "max_tokens": 2}
    if path == RESPONSES:
        image = {"type": "input_image", "image_url": URL, "detail": "auto"}
        parts = [*[image] * images, {"type": "input_text", "text": "what color is the square?"}]
        message = {"role": "user", "content": parts}
        return {"model": NAME, "input": [message], "max_output_tokens": 2}
    if path == MESSAGES:
        source = {"type": "base64", "media_type": "image/png", "data": URL.partition(",")[2]}
        parts = [*[{"type": "image", "source": source}] * images, {"type": "text", "text": "what?"}]
        return {"model": NAME, "messages": [{"role": "user", "content": parts}], "max_tokens": 2}
    if path == TOKENS:
        parts = [{"type": "image_url", "url": URL}] * images
        prompt = {"token_ids": [1, *[IMAGE_TOKEN] * images, 3], "content_parts": parts}
        return {"model": NAME, **prompt, "sampling_params": {"max_tokens": 2}}
    if path == SYSTEM_ONE:
        question = {"a": {"type": "yes_no", "instructions": "is it red?"}}
        return {"model": NAME, "state": "a", "questions": question, "images": [URL] * images}
    return {"model": NAME, "query": "what", "items": ["a"], "label_token_ids": [1, 2]}


BUDGETED = (CHAT, COMPLETION, RESPONSES, MESSAGES, BATCH, INVOCATIONS)
PATHS = (*BUDGETED, TOKENS, SYSTEM_ONE, SCORING)


@dataclass(frozen=True)
class Sent:
    """One request, who sends it, and whether it must be refused whatever it asks."""

    path: str
    key: str
    body: str
    headers: tuple[tuple[str, str], ...]
    query: str
    forbidden: bool


_ASKS = st.none() | st.one_of(
    st.builds(
        lambda b: {"budget": b}, st.sampled_from((0.05, 0.125, 0.2, 0.25, 0.4, 0.5, 0.75, 1.0))
    ),
    st.sampled_from(
        (
            {"tier": "economy"},
            {"tier": "full"},
            {"tier": "halved"},
            {"schedule": "fastv-0.4"},
            {"schedule": "stored-half"},
            {"max_flops_fraction": 0.3},
            {"max_flops_fraction": 1.0},
            {"budget": "auto"},
            {"budget": "auto", "minimum": 0.3},
            {"keep": [1.0] * 6 + [0.0] * 6, "rules": ["last"]},
            {"keep": [1.0] * 12, "rules": []},
            {"trace": True},
            {"reuse": True},
            {"budget": 0.4, "reuse": True},
            {"tier": "economy", "reuse": True},
            {"max_flops_fraction": 0.5, "reuse": True},
        )
    ),
)
_SHORT = st.none() | st.sampled_from(
    ("0.05", "0.25", "0.5", "1", "economy", "full", "auto", "0.5+reuse")
)


def _smuggle(body: dict[str, Any], place: str, wire: dict[str, Any]) -> None:
    if place == "sampling_params":
        body.setdefault("sampling_params", {})["extra_args"] = wire
    elif place == "top":
        body.update(wire)
    elif place == "extra_body":
        body["extra_body"] = {"vllm_xargs": wire}
    else:
        body[place] = wire


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """A request to any route, asking in any way, with keys of the wire in any place, or without."""
    path = draw(st.sampled_from((*BUDGETED, *PATHS)))
    body = copy.deepcopy(body_of(path, draw(st.integers(0, 2))))
    headers: dict[str, str] = {}
    forbidden = False
    if (ask := draw(_ASKS)) is not None:
        body["vtr"] = ask
    if (short := draw(_SHORT)) is not None and draw(st.booleans()):
        headers["X-VTR-Budget"] = short
    if (short := draw(_SHORT)) is not None and draw(st.booleans()):
        body["model"] = f"{NAME}@{short}"
    if draw(st.integers(0, 3)) == 0 and path in (CHAT, RESPONSES, COMPLETION, MESSAGES):
        body["stream"] = True
    if draw(st.integers(0, 2)) == 0:
        place = draw(
            st.sampled_from(("vllm_xargs", "sampling_params", "top", "extra_body", "metadata"))
        )
        _smuggle(body, place, draw(st.sampled_from(WIRE)))
        # vLLM drops what it does not know of routes that take no budget: nothing is steered there
        forbidden = path in BUDGETED and place != "sampling_params"
        forbidden = forbidden or (path == TOKENS and place == "sampling_params")
    query = draw(st.sampled_from(("", "", "", "?vtr=0.25", "?api-version=1")))
    return Sent(
        path,
        draw(st.sampled_from(sorted(KEYS))),
        json.dumps(body),
        tuple(headers.items()),
        query,
        forbidden or (query == "?vtr=0.25" and path in BUDGETED),
    )


def grow(count: int, start: int) -> list[Sent]:
    """``count`` requests, no two alike; the same for the same ``start``."""
    grown: dict[Sent, None] = {}
    while len(grown) < count:

        @seed(start + len(grown))
        @settings(
            max_examples=300,
            phases=[Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(requests())
        def collect(sent: Sent) -> None:
            grown[sent] = None

        collect()
    return list(grown)[:count]


def send_all(server: Server, sent: list[Sent]) -> list[httpx.Response]:
    async def one(client: httpx.AsyncClient, each: Sent) -> httpx.Response:
        key = (
            {"X-Api-Key": each.key}
            if each.path == MESSAGES
            else {"Authorization": f"Bearer {each.key}"}
        )
        headers = {"Content-Type": "application/json", **key, **dict(each.headers)}
        return await client.post(each.path + each.query, content=each.body, headers=headers)

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=240) as client:
            return await asyncio.gather(*(one(client, each) for each in sent))

    return asyncio.run(run())


def facts_of(answer: httpx.Response) -> dict[str, Any] | None:
    """The facts of an answer, whole or streamed; None where it has none."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        facts: dict[str, Any] | None = answer.json().get("vtr")
        return facts
    found = None
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            for holder in (event, event.get("response"), event.get("message")):
                found = (holder or {}).get("vtr", found)
    return found


def check(sent: Sent, answer: httpx.Response) -> int:
    """Within policy and told, or refused; returns the vision tokens that ran."""
    what = f"{sent}: {answer.status_code} {answer.text[:600]}"
    if sent.path == SYSTEM_ONE and answer.status_code == 501:
        return 0  # not of every model
    assert answer.status_code < 500, what
    if answer.status_code != 200:
        assert answer.json()["error"]["message"], what
        return 0
    assert not sent.forbidden, what
    if sent.path not in BUDGETED:
        assert "image" not in sent.body, what
        return 0
    facts, (low, high) = facts_of(answer), KEYS[sent.key]
    assert facts is not None, what
    assert low - 1e-9 <= facts["budget"] <= high + 1e-9, what
    if facts["vision_tokens"]:
        assert low - 0.02 <= facts["mean_keep"] <= high + 0.02, what
        mean = sum(facts["kept_per_layer"]) / len(facts["kept_per_layer"])
        assert facts["mean_keep"] == pytest.approx(mean / facts["vision_tokens"])
    assert float(answer.headers["x-vtr-budget"]) == pytest.approx(facts["budget"], rel=1e-4), what
    tokens: int = facts["vision_tokens"]
    return tokens


def fuzz(server: Server, sent: list[Sent]) -> Counter[tuple[str, int]]:
    """Send all; what ran in the engine is what the answers tell, and nothing else."""
    operator = httpx.Client(
        base_url=server.url, headers={"Authorization": "Bearer ops"}, timeout=120
    )
    with operator as client:
        before, ran = settled(client), 0
        statuses: Counter[tuple[str, int]] = Counter()
        for first in range(0, len(sent), AT_ONCE):
            some = sent[first : first + AT_ONCE]
            for each, answer in zip(some, send_all(server, some), strict=True):
                ran += check(each, answer)
                statuses[each.path, answer.status_code] += 1
        after = settled(client)
    assert total(after, "vtr_vision_tokens_total") - total(before, "vtr_vision_tokens_total") == ran
    return statuses


def test_nothing_runs_outside_of_its_policy_or_untold(guarded: Server) -> None:
    statuses = fuzz(guarded, grow(FEW, start=0))
    answered = sum(statuses[path, 200] for path in BUDGETED)
    assert answered >= 3, statuses


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_nor_do_thousands(guarded: Server) -> None:
    statuses = fuzz(guarded, grow(MANY, start=10**6))
    print(statuses)
