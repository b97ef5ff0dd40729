"""A really running server, through the client that users have."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.server.bad_input import CHAT, Case, bad_cases, chat_body
from tests.server.conftest import NAME, STEP_TOKENS, Server
from vtr_server.policy.vtr_field import VTRAnswer
from vtr_server.vllm_api.sagemaker import ADAPTER

pytestmark = pytest.mark.engine

FACTS = set(VTRAnswer.model_fields) - {"trace"}


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120, max_retries=0)


def ask(client: openai.OpenAI, vtr: dict[str, Any] | None = None, **more: Any) -> Any:
    body = chat_body(NAME, **more)
    return client.chat.completions.create(**body, extra_body={"vtr": vtr} if vtr else {})


def facts_of(answer: Any) -> dict[str, Any]:
    facts: dict[str, Any] = answer.vtr
    assert set(facts) == FACTS
    return facts


def test_without_a_budget_nothing_is_reduced(client: openai.OpenAI) -> None:
    facts = facts_of(ask(client))
    assert (facts["budget"], facts["schedule"], facts["source"]) == (1.0, "full", "full")
    assert facts["vision_tokens"] > 0
    assert set(facts["kept_per_layer"]) == {facts["vision_tokens"]}
    assert (facts["mean_keep"], facts["flops_fraction"]) == (1.0, 1.0)


def test_a_budget_reduces_the_deeper_layers(client: openai.OpenAI) -> None:
    answer = ask(client, {"budget": 0.25})
    facts = facts_of(answer)
    assert facts["source"] == "local-default"
    assert facts["kept_per_layer"] == sorted(facts["kept_per_layer"], reverse=True)
    assert facts["mean_keep"] == pytest.approx(0.25, abs=0.02)
    assert 0 < facts["flops_fraction"] < 0.5
    assert answer.usage.prompt_tokens > facts["vision_tokens"]


def test_a_stored_schedule_answers_to_its_budget_and_to_its_name(client: openai.OpenAI) -> None:
    by_budget, by_name = (
        ask(client, vtr) for vtr in ({"budget": 0.5}, {"schedule": "stored-half"})
    )
    assert facts_of(by_budget) == facts_of(by_name)
    assert facts_of(by_budget)["source"] == "searched"
    assert by_budget.choices[0].message.content == by_name.choices[0].message.content


def test_a_budget_between_stored_ones_is_interpolated(client: openai.OpenAI) -> None:
    half, between = (facts_of(ask(client, {"budget": budget})) for budget in (0.5, 0.75))
    assert (between["schedule"], between["source"]) == ("interpolated-0.75", "interpolated")
    # the upper neighbour is full: half of what stored-half drops comes back, to the token
    n_vision = half["vision_tokens"]
    expected = [(n_vision + kept) / 2 for kept in half["kept_per_layer"]]
    assert between["kept_per_layer"] == pytest.approx(expected, abs=1)


def test_a_schedule_may_come_with_the_request(server: Server, client: openai.OpenAI) -> None:
    with server.client() as plain:
        stored = plain.get("/v1/schedules").json()["data"][1]
    by_name = ask(client, {"schedule": "stored-half"})
    inline = ask(client, {"keep": stored["keep"], "rules": stored["rules"]})
    told = facts_of(inline)
    assert (told["schedule"], told["source"]) == ("inline", "inline")
    assert told["budget"] == pytest.approx(0.5)
    same = ("vision_tokens", "kept_per_layer", "mean_keep", "flops_fraction")
    assert [told[key] for key in same] == [facts_of(by_name)[key] for key in same]
    assert inline.choices[0].message.content == by_name.choices[0].message.content


def test_an_inline_schedule_that_keeps_all_is_vllms_own_path(client: openai.OpenAI) -> None:
    layers = len(facts_of(ask(client))["kept_per_layer"])
    # prompt_logprobs: refused on a reduced request
    more = {"vtr": {"keep": [1.0] * layers, "rules": []}, "prompt_logprobs": 1}
    answer = client.chat.completions.create(**chat_body(NAME), extra_body=more)
    assert (facts_of(answer)["source"], facts_of(answer)["mean_keep"]) == ("inline", 1.0)


def test_a_malformed_inline_schedule_is_unprocessable(client: openai.OpenAI) -> None:
    layers = len(facts_of(ask(client))["kept_per_layer"])
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(client, {"keep": [1.0] * (layers + 1), "rules": []})
    assert caught.value.code == "invalid_schedule"
    assert f"the model has {layers} layers" in caught.value.message


def test_the_header_is_the_other_way_in(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        **chat_body(NAME), extra_headers={"X-VTR-Budget": "0.25"}
    )
    same = facts_of(ask(client, {"budget": 0.25})) | {"asked_by": "header"}
    assert facts_of(answer) == same


@pytest.mark.parametrize("headers", [{}, {ADAPTER: NAME}], ids=["its own", "by header"])
def test_sagemakers_route_hears_what_the_model_asks_for(
    server: Server, headers: dict[str, str]
) -> None:
    with server.client() as plain:
        body = chat_body(f"{NAME}@0.25")
        told = plain.post("/invocations", json=body, headers=headers).json()
        wrong = plain.post("/invocations", json=chat_body("no-such-model"))
    assert (told["vtr"]["budget"], told["vtr"]["asked_by"]) == (0.25, "model")
    assert wrong.status_code == 404


@pytest.mark.parametrize("body", ['{"messages":' + "[" * 5000, "3", "{", '"requestType"', b"\xff"])
def test_what_sagemakers_route_cannot_read_is_the_clients_fault(server: Server, body: Any) -> None:
    with server.client() as plain:
        headers = {"content-type": "application/json"}
        answer = plain.post("/invocations", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_several_choices_are_one_prompt(client: openai.OpenAI) -> None:
    answer = ask(client, {"budget": 0.25}, n=2, temperature=1.0, seed=1)
    assert len(answer.choices) == 2
    assert facts_of(answer) == facts_of(ask(client, {"budget": 0.25}))


def test_a_completion_of_text_is_told_too(client: openai.OpenAI) -> None:
    body = {"vtr": {"budget": 0.25}}
    answer = client.completions.create(
        model=NAME, prompt=["what", "is"], max_tokens=3, extra_body=body
    )
    assert len(answer.choices) == 2
    assert facts_of(answer)["vision_tokens"] == 0
    assert facts_of(answer)["flops_fraction"] == 1.0


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_says_the_same_and_ends_with_the_facts(client: openai.OpenAI, usage: bool) -> None:
    whole = ask(client, {"budget": 0.25})
    options = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(ask(client, {"budget": 0.25}, stream=True, **options))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    told = [chunk for chunk in chunks if hasattr(chunk, "vtr")]
    assert [facts_of(chunk) for chunk in told] == [facts_of(whole)] * (2 if usage else 1)
    assert told[0].choices[0].finish_reason
    assert (told[-1].usage is not None) == usage


def test_a_completion_streams_with_the_facts(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model=NAME, prompt="what", max_tokens=3, stream=True))
    assert [facts_of(c)["schedule"] for c in chunks if hasattr(c, "vtr")] == ["full"]


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"vtr": {"budget": 7}}, "invalid_budget"),
        ({"vtr": {"schedule": "nosuch"}}, "unknown_schedule"),
        ({"vtr": {"budgit": 0.5}}, "invalid_request"),
        ({"vllm_xargs": {"vtr_keep": [1.0]}}, "invalid_request"),
        ({"vtr": {"budget": 0.5}, "use_beam_search": True, "n": 2}, "unsupported_request"),
        ({"vtr": {"budget": 0.5}, "prompt_logprobs": 1}, "unsupported_request"),
    ],
)
def test_a_refusal_has_openai_form(client: openai.OpenAI, more: dict[str, Any], code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat_body(NAME), extra_body=more)
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["message"]


def test_what_the_engine_refuses_is_a_status_in_a_stream_too(
    server: Server, client: openai.OpenAI
) -> None:
    images = STEP_TOKENS // facts_of(ask(client))["vision_tokens"] + 1
    body = chat_body(NAME, vtr={"budget": 0.5})
    body["messages"][0]["content"][:1] *= images
    with server.client() as plain:
        for stream in (False, True):
            answer = plain.post(CHAT, json=body | {"stream": stream})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "prompt_too_long")
        # at full budget the same prompt may take several steps
        assert plain.post(CHAT, json=body | {"vtr": None}).status_code == 200


def test_the_schedules_on_offer(server: Server) -> None:
    with server.client() as client:
        offer = client.get("/v1/schedules").json()
    assert [item["name"] for item in offer["data"]] == ["full", "stored-half"]
    assert offer["geometry"]["layers"] == len(offer["data"][0]["keep"])
    assert {"fastv-<budget>", "p-sigmoid-<budget>"} <= {form["name"] for form in offer["forms"]}


def test_health_has_no_body(server: Server) -> None:
    with server.client() as client:
        answer = client.get("/health")
    assert (answer.status_code, answer.content) == (200, b"")


def test_metrics_stand_beside_vllms(server: Server, client: openai.OpenAI) -> None:
    def counters() -> dict[str, float]:
        text = httpx.get(f"{server.url}/metrics", timeout=60).text
        assert "vllm:num_requests_running" in text
        found = re.findall(r"^(vtr_\w+_total(?:{[^}]*})?) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    before = counters()
    facts = facts_of(ask(client, {"budget": 0.25}))
    with pytest.raises(openai.BadRequestError):
        ask(client, {"budget": 7})
    after = counters()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("vtr_vision_tokens_total") == facts["vision_tokens"]
    assert grown("vtr_vision_token_layers_kept_total") == sum(facts["kept_per_layer"])
    labels = 'outcome="ok",source="local-default",tier="economy"'
    assert grown(f"vtr_requests_total{{{labels}}}") == 1
    assert grown('vtr_refused_requests_total{reason="invalid_budget"}') == 1


def test_the_api_description_shows_the_field(server: Server) -> None:
    with server.client() as client:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["vtr"]["additionalProperties"] is False


def test_every_malformed_request_is_refused_and_harms_nothing(server: Server) -> None:
    """200 and more of them, while good requests run: those get the tokens they get alone."""
    good = [chat_body(NAME, max_tokens=8), chat_body(NAME, vtr={"budget": 0.25}, max_tokens=8)]
    cases = bad_cases(NAME)
    assert len(cases) >= 200
    with server.client() as client, ThreadPoolExecutor(8) as pool:
        alone = [_tokens(client, body) for body in good]
        beside = [pool.submit(_tokens, client, good[i % 2]) for i in range(40)]
        verdicts = [pool.submit(_verdict, client, case) for case in cases]
        assert [found for v in verdicts if (found := v.result())] == []
        assert [future.result() for future in beside] == alone * 20
        assert [_tokens(client, body) for body in good] == alone
        assert client.get("/health").status_code == 200


def _tokens(client: httpx.Client, body: dict[str, Any]) -> list[int]:
    answer = client.post(CHAT, json=body | {"return_token_ids": True})
    assert answer.status_code == 200, answer.text
    tokens: list[int] = answer.json()["choices"][0]["token_ids"]
    return tokens


def _verdict(client: httpx.Client, case: Case) -> str | None:
    """None if the case got a 4xx with a message in OpenAI's form."""
    headers = {name: value.encode() for name, value in case.headers.items()}
    answer = client.post(case.path, content=case.content, headers=headers)
    try:
        message = answer.json()["error"]["message"]
    except (json.JSONDecodeError, KeyError, TypeError):
        message = ""
    if 400 <= answer.status_code < 500 and message:
        return None
    return f"{case.name}: {answer.status_code} {answer.text[:200]}"
