"""Every way of asking, on every endpoint of a running server, and what it is told in return."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from tests.server.bad_input import CHAT, COMPLETION, chat_body, data_url, picture
from tests.server.conftest import NAME, Server
from vtr_server.http.answer import _Decision
from vtr_server.policy.requested_budget import Asked, Bounds
from vtr_server.policy.vtr_field import Ask
from vtr_vllm.engine.frontend.admission import Admitted

pytestmark = pytest.mark.engine

RESPONSES = "/v1/responses"
ENDPOINTS = (CHAT, COMPLETION, RESPONSES)
USAGE = {RESPONSES: "input_tokens_details"}
"""Where usage says of what a prompt was made, if not in prompt_tokens_details."""


def body_of(path: str, **more: Any) -> dict[str, Any]:
    """A request of one image; a completion cannot have one."""
    if path == CHAT:
        return chat_body(NAME, **more)
    if path == COMPLETION:
        return {"model": NAME, "prompt": "what is", "max_tokens": 3, "temperature": 0} | more
    image = {"type": "input_image", "image_url": data_url(picture()), "detail": "auto"}
    content = [image, {"type": "input_text", "text": "what color is the square?"}]
    message = {"role": "user", "content": content}
    return {"model": NAME, "input": [message], "max_output_tokens": 4, "temperature": 0} | more


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The parsed events of a stream."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if "data: " in line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def told_by(answer: httpx.Response, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(facts, usage) of an answer, whole or streamed."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("application/json"):
        body = answer.json()
        return body["vtr"], body["usage"]
    ends = [event.get("response", event) for event in events_of(answer)]
    ends = [end for end in ends if "vtr" in end]
    assert ends, answer.text
    assert all(end["vtr"] == ends[0]["vtr"] for end in ends)
    assert len(ends) == (1 if path == RESPONSES else 2)
    return ends[0]["vtr"], ends[-1]["usage"]


WAYS: dict[str, tuple[dict[str, Any], dict[str, str], str, dict[str, Any]]] = {
    # name: (body, headers, alias, what the facts say)
    "nothing": ({}, {}, "", {"asked_by": "default", "schedule": "full"}),
    "body number": ({"budget": 0.25}, {}, "", {"asked_by": "body", "budget": 0.25}),
    "body tier": ({"tier": "economy"}, {}, "", {"tier": "economy", "budget": 0.25}),
    "body schedule": ({"schedule": "fastv-0.4"}, {}, "", {"source": "built-in-form"}),
    "stored tier": ({"tier": "halved"}, {}, "", {"schedule": "stored-half", "tier": "halved"}),
    "body flops": ({"max_flops_fraction": 0.6}, {}, "", {"asked_by": "body"}),
    "header number": ({}, {"X-VTR-Budget": "0.25"}, "", {"asked_by": "header", "budget": 0.25}),
    "header tier": ({}, {"X-VTR-Budget": "economy"}, "", {"asked_by": "header", "budget": 0.25}),
    "alias number": ({}, {}, "@0.25", {"asked_by": "model", "budget": 0.25}),
    "alias tier": ({}, {}, "@economy", {"asked_by": "model", "tier": "economy"}),
    "alias auto": ({}, {}, "@auto", {"auto": {"level": 1.0, "minimum": 0.0, "maximum": 1.0}}),
    "all agree": (
        {"budget": 0.25},
        {"X-VTR-Budget": "0.25"},
        "@0.25",
        {"asked_by": "body", "budget": 0.25},
    ),
    "body floor": (
        {"budget": 0.25, "per_image_floor": 0.5},
        {},
        "",
        {"budget": 0.25, "per_image_floor": 0.5},
    ),
    "floor beside the header": (
        {"per_image_floor": 1},
        {"X-VTR-Budget": "0.25"},
        "",
        {"asked_by": "header", "per_image_floor": 1.0},
    ),
    "auto bounds": (
        {"budget": "auto", "minimum": 0.25, "maximum": 0.5},
        {},
        "",
        {"budget": 0.5, "auto": {"level": 1.0, "minimum": 0.25, "maximum": 0.5}},
    ),
}


def send(
    client: httpx.Client, path: str, way: str, stream: bool
) -> tuple[httpx.Response, dict[str, Any]]:
    field, headers, alias, says = WAYS[way]
    more: dict[str, Any] = {"vtr": field} if field else {}
    if stream:
        more["stream"] = True
        if path != RESPONSES:
            more["stream_options"] = {"include_usage": True}
    body = body_of(path, **more) | {"model": NAME + alias}
    if path == RESPONSES and way == "nothing":
        says = {"asked_by": "detail", "budget": 0.75}  # where detail is always said
    return client.post(path, json=body, headers=headers), says


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("way", WAYS)
def test_body_headers_and_usage_tell_the_same(
    server: Server, way: str, path: str, stream: bool
) -> None:
    with server.client() as client:
        answer, says = send(client, path, way, stream)
    facts, usage = told_by(answer, path)
    assert {name: facts[name] for name in says} == says
    vision, kept = facts["vision_tokens"], facts["kept_per_layer"]
    assert (vision > 0) == (path != COMPLETION)
    assert kept == sorted(kept, reverse=True)
    assert answer.headers["x-vtr-schedule"] == facts["schedule"]
    assert answer.headers["x-vtr-source"] == facts["source"]
    assert int(answer.headers["x-vtr-vision-tokens"]) == vision
    for name in ("budget", "mean-keep", "flops-fraction"):
        said = float(answer.headers[f"x-vtr-{name}"])
        assert said == pytest.approx(facts[name.replace("-", "_")], rel=1e-5)
    details = usage[USAGE.get(path, "prompt_tokens_details")]
    assert details["vision_tokens"] == vision
    assert details["vision_tokens_kept"] == pytest.approx(sum(kept) / len(kept), abs=1e-3)
    for name in ("mean_keep", "flops_fraction"):
        assert details[name] == facts[name]
    if way == "body flops" and vision:
        assert 0.5 < facts["flops_fraction"] <= 0.6


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_schedule_comes_with_the_request_on_every_endpoint(server: Server, path: str) -> None:
    with server.client() as client:
        inline = client.get("/v1/schedules").json()["inline"]["example"]
        answer = client.post(path, json=body_of(path, vtr=inline))
    facts, _ = told_by(answer, path)
    assert (facts["source"], facts["budget"]) == ("inline", pytest.approx(0.5))


@pytest.mark.parametrize(
    ("detail", "budget", "tier"),
    [("low", 0.25, "economy"), ("auto", 0.75, None), ("high", 1.0, "full")],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_detail_means_what_the_settings_say(
    server: Server, path: str, detail: str, budget: float, tier: str | None
) -> None:
    body = body_of(path)
    if path == CHAT:
        body["messages"][0]["content"][0]["image_url"]["detail"] = detail
    else:
        body["input"][0]["content"][0]["detail"] = detail
    with server.client() as client:
        facts, _ = told_by(client.post(path, json=body), path)
        stronger, _ = told_by(client.post(path, json=body, headers={"X-VTR-Budget": "0.5"}), path)
    assert (facts["asked_by"], facts["budget"], facts["tier"]) == ("detail", budget, tier)
    assert (stronger["asked_by"], stronger["budget"]) == ("header", 0.5)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_trace_says_which_tokens_each_layer_kept(server: Server, path: str, stream: bool) -> None:
    body = body_of(path, vtr={"budget": 0.25, "trace": True}, stream=stream)
    if path == CHAT and stream:
        body["stream_options"] = {"include_usage": True}
    with server.client() as client:
        facts, _ = told_by(client.post(path, json=body), path)
    trace, n_vision = facts["trace"], facts["vision_tokens"]
    assert trace["truncated"] is False
    side = round(n_vision**0.5)
    assert trace["images"] == [{"grid": [side, side], "first": 0, "tokens": n_vision}]
    assert trace["cuts"]
    kept = set(range(n_vision))
    counts = []
    cuts = {cut["layer"]: cut["kept"] for cut in trace["cuts"]}
    for layer in range(len(facts["kept_per_layer"])):
        if layer in cuts:
            assert cuts[layer] == sorted(cuts[layer])
            assert set(cuts[layer]) < kept
            kept = set(cuts[layer])
        counts.append(len(kept))
    assert counts == facts["kept_per_layer"]


def test_with_a_floor_no_image_vanishes(server: Server) -> None:
    """Two images of one size in tokens: at floor 1 each cut keeps as many of both."""
    body = body_of(CHAT, vtr={"budget": 0.2, "per_image_floor": 1, "trace": True})
    content = body["messages"][0]["content"]
    content.insert(0, {"type": "image_url", "image_url": {"url": data_url(picture(80))}})
    with server.client() as client:
        facts, _ = told_by(client.post(CHAT, json=body), CHAT)
    assert facts["per_image_floor"] == 1.0
    first, second = facts["trace"]["images"]
    shares = []
    for cut in facts["trace"]["cuts"]:
        of_first = sum(number < second["first"] for number in cut["kept"])
        shares.append((of_first, len(cut["kept"]) - of_first))
    assert first["tokens"] == second["tokens"]
    assert shares
    assert all(abs(one - other) <= 1 for one, other in shares)


def test_a_trace_of_a_full_budget_has_no_cuts_and_goes_on_one_answer(server: Server) -> None:
    with server.client() as client:
        whole = client.post(CHAT, json=body_of(CHAT, vtr={"trace": True})).json()["vtr"]
        assert (whole["trace"]["cuts"], whole["trace"]["truncated"]) == ([], False)
        two = client.post(CHAT, json=body_of(CHAT, vtr={"trace": True}, n=2))
        prompts = {"model": NAME, "prompt": ["what", "is"], "max_tokens": 1, "vtr": {"trace": True}}
        several = client.post("/v1/completions", json=prompts)
    assert two.json()["error"]["code"] == "unsupported_request"
    assert several.json()["error"]["code"] == "unsupported_request"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    ("field", "header", "alias", "code"),
    [
        ({"budget": 0.25}, "0.5", "", "invalid_request"),
        ({"tier": "gold"}, None, "", "unknown_tier"),
        ({"tier": "lossless"}, None, "", "unknown_tier"),
        (None, "nosuchtier", "", "unknown_tier"),
        (None, None, "@7", "invalid_budget"),
        ({"budget": "auto", "minimum": 0.5, "maximum": 0.25}, None, "", "invalid_budget"),
        ({"trace": "yes"}, None, "", "invalid_request"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_refusal_is_a_status_in_openai_form_for_streams_too(
    server: Server, path: str, stream: bool, field: Any, header: Any, alias: str, code: str
) -> None:
    body = body_of(path, stream=stream, vtr=field) | {"model": NAME + alias}
    with server.client() as client:
        headers = {"X-VTR-Budget": header} if header else {}
        answer = client.post(path, json=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code)
    assert (error["type"], bool(error["message"])) == ("invalid_request_error", True)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_share_that_cannot_be_met_says_the_least(server: Server, stream: bool) -> None:
    body = body_of(CHAT, vtr={"max_flops_fraction": 0.001}, stream=stream)
    with server.client() as client:
        error = client.post(CHAT, json=body).json()["error"]
    assert error["code"] == "invalid_budget"
    assert "costs at least 0." in error["message"]


def test_models_are_listed_with_their_aliases(server: Server) -> None:
    with server.client() as client:
        listed = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        offer = client.get("/v1/schedules").json()
        assert offer["tiers"] == {"full": 1.0, "balanced": 0.5, "economy": 0.25, "halved": 0.5}
        assert offer["auto"] is True
        aliases = [*offer["tiers"], "0.5", "auto"]
        aliases += [f"{alias}+reuse" for alias in ("balanced", "economy", "auto")]
        aliases += ["0.5+adapt", "auto+adapt"]
        assert list(listed) == [NAME, *(f"{NAME}@{alias}" for alias in aliases)]
        for name in list(listed)[1:]:
            assert listed[name]["parent"] == NAME
            answer = client.post(COMPLETION, json=body_of(COMPLETION) | {"model": name})
            assert told_by(answer, COMPLETION)[0]["asked_by"] == "model"
        unknown = client.post(COMPLETION, json=body_of(COMPLETION) | {"model": "other@0.5"})
    assert unknown.status_code == 404


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("reuse", [True, None])
def test_the_second_turn_finds_the_image_in_the_cache(
    server: Server, reuse: bool | None, stream: bool
) -> None:
    """Of a reused schedule all of its vision tokens, of one that looks at the question none."""
    url = data_url(picture(150 + 2 * stream + bool(reuse)))  # that no other test has sent
    field = {"budget": 0.5} | ({} if reuse is None else {"reuse": reuse})
    body = chat_body(NAME, url, vtr=field)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    first = body["messages"][0]["content"]
    first[1]["text"] = " ".join(["what color is the square?"] * 8)  # blocks behind the image fill
    told = []
    with server.client() as client:
        for question in ("", "is it red?"):
            if question:
                body["messages"] += [
                    {"role": "assistant", "content": "red"},
                    {"role": "user", "content": question},
                ]
            answer = client.post(CHAT, json=body)
            told.append(told_by(answer, CHAT))
            assert answer.headers["x-vtr-reuse"] == str(bool(reuse)).lower()
    (one, _), (two, usage) = told
    assert (one["reuse"], two["reuse"]) == (bool(reuse), bool(reuse))
    assert one["source"] == ("local-default" if reuse else "searched")
    assert one["kept_per_layer"] == two["kept_per_layer"]
    assert one["vision_tokens_cached"] == 0
    assert two["vision_tokens_cached"] == (two["vision_tokens"] if reuse else 0)
    assert usage["prompt_tokens_details"]["vision_tokens_cached"] == two["vision_tokens_cached"]


def test_a_trace_of_several_prompts_is_refused_before_any_of_them_runs(server: Server) -> None:
    """Nothing of it is counted, or charged."""
    said = [[{"role": "user", "content": f"word {number}"}] for number in range(2)]
    asked = [
        ("/v1/chat/completions/batch", {"messages": said}),
        ("/v1/completions", {"prompt": ["a word", "another"]}),
        ("/v1/completions", {"prompt": [[5, 6], [7, 8]]}),
    ]
    with server.client() as client:
        for path, body in asked:
            answer = client.post(path, json=body | {"max_tokens": 1, "vtr": {"trace": True}})
            assert answer.status_code == 400
            assert "has 2 prompts" in answer.json()["error"]["message"]
        one = {"prompt": [5, 6], "max_tokens": 1, "vtr": {"trace": True}}
        assert client.post("/v1/completions", json=one).status_code == 200


BEAMS = {"use_beam_search": True, "n": 2}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_beams_run_at_full_budget_or_not_at_all(server: Server, stream: bool) -> None:
    """At full where the client leaves the budget to the server; text alone always."""
    asked = body_of(CHAT, vtr={"budget": 0.5}, stream=stream) | BEAMS
    left = body_of(CHAT) | BEAMS
    left["messages"][0]["content"][0]["image_url"]["detail"] = "low"
    text = body_of(COMPLETION, vtr={"budget": 0.5}) | BEAMS
    with server.client() as client:
        refused = client.post(CHAT, json=asked)
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            400,
            "unsupported_request",
        )
        facts, _ = told_by(client.post(CHAT, json=left), CHAT)
        assert (facts["asked_by"], facts["budget"]) == ("detail", 1.0)
        assert client.post(COMPLETION, json=text).status_code == 200


def test_beams_that_would_be_reduced_are_refused_before_an_image_is_decoded(server: Server) -> None:
    """This one cannot be; a choice by FLOPs waits for the prompt, so there it is what is at fault."""
    found = {}
    for name, field in {"budget": 0.5, "schedule": "fastv-0.4", "max_flops_fraction": 0.5}.items():
        body = body_of(CHAT, vtr={name: field}) | BEAMS
        body["messages"][0]["content"][0]["image_url"]["url"] = data_url(b"no image")
        with server.client() as client:
            found[name] = client.post(CHAT, json=body).json()["error"]["code"]
    refused = "unsupported_request"
    assert found == {"budget": refused, "schedule": refused, "max_flops_fraction": "invalid_media"}


def test_the_first_of_many_beams_chooses_for_all() -> None:
    """Each beam of each token is a request of its own: a choice each would be told in the answer."""
    chosen: list[int] = []

    class Chooser:
        def choose_by_flops(self, fraction: float, policy: Bounds, *sizes: Any) -> Any:
            chosen.append(sizes[0])
            return SimpleNamespace(wire={"vtr_keep": [0.5]}, with_floor=lambda _: chooser_found)

    chooser_found = SimpleNamespace(wire={"vtr_keep": [0.5]})
    asked = Asked(Ask(max_flops_fraction=0.5), "body")
    decide = _Decision(cast(Any, Chooser()), asked, Bounds(0.0, 1.0), has_beams=True)
    for beam in range(8):
        assert decide(Admitted(f"beam-{beam}", None, 0, 5)) == {"vtr_keep": [0.5]}
    assert len(chosen) == 1


@pytest.mark.parametrize("more", [{"prompt_logprobs": 1}, {"echo": True, "logprobs": True}])
def test_logprobs_of_the_prompt_are_had_at_full_budget(
    server: Server, more: dict[str, Any]
) -> None:
    left, asked = body_of(CHAT) | more, body_of(CHAT, vtr={"budget": 0.5}) | more
    left["messages"][0]["content"][0]["image_url"]["detail"] = "low"
    with server.client() as client:
        facts, _ = told_by(client.post(CHAT, json=left), CHAT)
        assert (facts["asked_by"], facts["budget"]) == ("detail", 1.0)
        refused = client.post(CHAT, json=asked).json()["error"]
        assert refused["code"] == "unsupported_request"
