"""Schedules are replaced, broken, added and deleted while eight clients ask for them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import wait_until
from tests.server.bad_input import CHAT, chat_body
from tests.server.conftest import NAME, Server
from vtr_vllm.schedules import ModelGeometry, fastv

CLIENTS = 8
ASKS: tuple[dict[str, Any], ...] = (
    {"schedule": "hot"},
    {"schedule": "stored-half"},
    {"tier": "halved"},
    {"tier": "economy"},
    {"budget": 0.5},
    {"budget": 0.25},
    {"budget": 0.375},
    {"budget": "auto", "maximum": 0.5},
)

pytestmark = pytest.mark.engine


def steps(folder: Path, geometry: ModelGeometry) -> Iterator[set[str]]:
    """Change the folder; yields the names of schedules that must be offered from then on."""

    def save(file: str, name: str, budget: float) -> None:
        form = fastv(geometry, budget)
        schedule = replace(form, name=name, method="g-search", budget=budget)
        schedule.save(folder / file)

    always = {"full", "stored-half"}
    save("hot.json", "hot", 0.25)
    yield {"hot", *always}
    save("hot.json", "hot", 0.375)
    save("more.json", "more", 0.75)
    yield {"hot", "more", *always}
    (folder / "hot.json").write_text('{"name": "hot", "keep": [1.0, ')
    (folder / "more.json").unlink()
    yield {"hot", *always}
    (folder / "rubbish.json").write_bytes(b"\xff\x00")
    save("rival.json", "hot2", 0.5)  # the budget of stored-half: neither wins
    (folder / "hot.json").unlink()
    yield {"hot", *always}
    (folder / "rival.json").unlink()
    yield always
    (folder / "rubbish.json").unlink()
    save("hot.json", "hot", 0.25)
    yield {"hot", *always}


def offered(client: httpx.Client) -> set[str]:
    return {each["name"] for each in client.get("/v1/schedules").json()["data"]}


def check(ask: dict[str, Any], answer: httpx.Response) -> str:
    """What came out, in a word; fails on what must not come out."""
    if answer.status_code != 200:
        assert ask == {"schedule": "hot"}, answer.text
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_schedule")
        return "unknown"
    facts = answer.json()["vtr"]
    if "schedule" in ask:
        assert facts["schedule"] == ask["schedule"]
    if isinstance(ask.get("budget"), float):
        assert facts["budget"] == ask["budget"]
    assert facts["vision_tokens"] >= max(facts["kept_per_layer"])
    assert 0 < facts["mean_keep"] <= 0.8, facts
    return "fine"


def test_no_request_fails_for_a_folder_that_changes(server: Server) -> None:
    seen: Counter[tuple[int, str]] = Counter()
    wrong: list[str] = []
    done = threading.Event()

    def ask(number: int) -> None:
        with server.client() as client:
            while not done.is_set():
                try:
                    body = chat_body(NAME, vtr=ASKS[number], stream=False)
                    seen[number, check(ASKS[number], client.post(CHAT, json=body))] += 1
                except (AssertionError, httpx.HTTPError) as err:
                    wrong.append(f"{ASKS[number]}: {err!r}")

    with server.client() as client:
        before = offered(client)
        geometry = ModelGeometry(**client.get("/v1/schedules").json()["geometry"])
        clients = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
        for each in clients:
            each.start()
        try:
            for names in steps(server.schedules, geometry):
                _wait_until_all_asked(seen, wrong)
                wait_until(lambda names=names: offered(client) == names)
        finally:
            done.set()
            for each in clients:
                each.join()
            for file in server.schedules.glob("*.json"):
                if file.name != "stored-half.json":
                    file.unlink()
            wait_until(lambda: offered(client) == before)
    assert wrong == []
    assert {number for number, what in seen if what == "fine"} == set(range(CLIENTS))
    assert seen[0, "unknown"], "nobody asked while it was deleted"


def _wait_until_all_asked(seen: Counter[tuple[int, str]], wrong: list[str]) -> None:
    """Every client got an answer since."""
    before = [sum(n for (who, _), n in list(seen.items()) if who == c) for c in range(CLIENTS)]
    wait_until(
        lambda: (
            bool(wrong)
            or all(
                sum(n for (who, _), n in list(seen.items()) if who == c) > before[c]
                for c in range(CLIENTS)
            )
        )
    )
