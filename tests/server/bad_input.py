"""Malformed requests, generated: every one must get a 4xx with a message and change nothing."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
JSON_TYPE = {"content-type": "application/json"}

# Values no budget may have. Python's own literals stand for JSON that only its parser accepts.
BUDGETS = (
    *("0.5", "", "half", "NaN", True, False, [], [0.5], {}, {"value": 0.5}),
    *(0, 0.0, -0.0, -1e-9, -0.25, -1, 1.0000001, 1.5, 2, 100, 1e308, 10**30, 10**400),
    *(float("nan"), float("inf"), float("-inf")),
)
SCHEDULES = (
    *("", " ", "nosuch", "FULL", "full ", "fastv", "fastv-", "fastv-0", "fastv-1.5", "fastv-.5"),
    *("fastv-0.01", "fastv-nan", "fastv-0.12345", "vtw-0.4321", "p-sigmoid-0.0", "../../secret"),
    *(
        "p-sigmoid--0.5",
        "uniform-0,5",
        "x" * 97,
        "x" * 10**6,
        "\x00",
        "\ud800",
        5,
        0.5,
        True,
        [],
        {},
    ),
)
FIELDS = (
    *({}, [], [0.5], "0.5", 0.5, 1, True, "budget"),
    *({"budgit": 0.5}, {"Budget": 0.5}, {"budget": 0.5, "extra": 1}, {"": 0.5}),
    *({"budget": 0.5, "schedule": "full"}, {"budget": None, "schedule": None}, {"budget": None}),
    *({"keep": [1.0, 0.5]}, {"vtr": {"budget": 0.5}}, {"schedule": None}),
    *({"rules": ["last"]}, {"rules": []}, {"keep": [1.0] * 12, "rules": None}),
    {"budget": 0.5, "keep": [1.0] * 12, "rules": []},
    {"schedule": "full", "keep": [1.0] * 12, "rules": []},
    {"budget": 0.5, "rules": []},
)
# Two lists in form, no schedule of any model: the tested ones have fewer than 64 layers, and where
# those are 12, each of the later entries fails for a reason of its own.
INLINE: tuple[dict[str, Any], ...] = (
    {"keep": [], "rules": []},
    {"keep": [1.0] * 64, "rules": []},
    {"keep": [1.0] * 1024, "rules": ["last"] * 1024},
    {"keep": [1.0] * 12, "rules": ["last"]},
    {"keep": [1.0] * 6 + [0.5] * 6, "rules": []},
    {"keep": [1.0] * 6 + [0.5] * 6, "rules": ["nosuch"]},
    {"keep": [1.0] * 6 + [0.5] * 6, "rules": [None]},
    {"keep": [1.0] * 6 + [0.5] * 6, "rules": [{"score": "last"}]},
    {"keep": [1.0] * 6 + [0.5] * 6, "rules": ["previous"]},
    {"keep": [0.5] * 12, "rules": ["last"]},
    {"keep": [0.5] * 6 + [1.0] * 6, "rules": ["random"]},
    {"keep": [1.0] * 11 + [float("nan")], "rules": ["last"]},
    {"keep": [1.0] * 11 + [float("-inf")], "rules": ["last"]},
    {"keep": [1.5] + [1.0] * 11, "rules": []},
    {"keep": [10**400] * 12, "rules": []},
    {"keep": [1.0] * 11 + [-0.5], "rules": ["last"]},
    {"keep": [True] * 12, "rules": []},
    {"keep": ["0.5"] * 12, "rules": ["random"]},
    {"keep": [[0.5]] * 12, "rules": ["random"]},
    {"keep": [None] * 12, "rules": ["random"]},
)
# Not even two lists of an allowed length.
NO_LISTS: tuple[dict[str, Any], ...] = (
    {"keep": [1.0] * 1025, "rules": []},
    {"keep": [1.0] * 10**5, "rules": []},
    {"keep": [1.0] * 12, "rules": ["last"] * 1025},
    {"keep": "1" * 12, "rules": []},
    {"keep": 0.5, "rules": []},
    {"keep": {"0": 1.0}, "rules": []},
    {"keep": [1.0] * 12, "rules": "last"},
    {"keep": [1.0] * 12, "rules": {}},
)
# The other ways of asking, each wrong in itself.
WAYS: tuple[dict[str, Any], ...] = (
    *({"tier": tier} for tier in ("", "nosuch", "Economy", "x" * 10**6, "\x00", 5, [], {}, True)),
    *(
        {"max_flops_fraction": share}
        for share in ("half", 0, -1, 1.5, 1e-9, float("nan"), True, [])
    ),
    *({"budget": "auto", "minimum": bound} for bound in (0, 2, "low", float("inf"), [])),
    {"budget": "auto", "minimum": 0.75, "maximum": 0.25},
    {"budget": 0.5, "minimum": 0.25},
    {"tier": "economy", "maximum": 0.25},
    {"budget": "Auto"},
    {"budget": 0.5, "trace": "yes"},
    {"trace": False},
    {"budget": 0.5, "tier": "economy"},
    {"max_flops_fraction": 0.5, "budget": "auto"},
)
ALIASES = ("", "@", "7", "-0.5", "nan", "nosuch", "Economy", "0.5@0.5", "\x00", "x" * 10**5)
HEADERS = ("", "nan", "inf", "-0.5", "0", "1.1", "1e400", "0x1p-1", "1_0", "½", "0.5,0.5", "a")
XARGS: tuple[dict[str, Any], ...] = (
    {"vtr_keep": [1.0] * 12, "vtr_rules": []},
    {"vtr_keep": [1.0, 0.5], "vtr_rules": ["last"]},
    {"vtr_rules": ["last"]},
    {"vtr_budget": 0.5},
    {"VTR_KEEP": [0.1]},
    {"other": 1, "vtr_x": "y"},
)
BODIES = (
    *(b"", b"{", b"}", b"null", b"[]", b"[1, 2]", b'"text"', b"5", b"nan", b"{'a': 1}", b"{}"),
    *(b'{"model": "demo"', b"\xff\xfe", b"\x00", b'{"messages": }', b"[" * 20_000),
)


@dataclass(frozen=True)
class Case:
    """One request that must be refused."""

    name: str
    path: str
    content: bytes
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON_TYPE))


def picture(size: int = 168) -> bytes:
    """A small PNG that loads."""
    image = Image.new("RGB", (size, size), (200, 30, 30))
    image.paste((20, 20, 220), (size // 4, size // 4, size // 2, size // 2))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    """``data`` as clients send it."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def chat_body(model: str, url: str | None = None, **more: Any) -> dict[str, Any]:
    """A chat request with one image."""
    image = {"type": "image_url", "image_url": {"url": url or data_url(picture())}}
    content = [image, {"type": "text", "text": "what color is the square?"}]
    message = {"role": "user", "content": content}
    return {"model": model, "messages": [message], "max_tokens": 4, "temperature": 0} | more


def bad_cases(model: str) -> list[Case]:
    """Every case; the model name is the only thing in them that is right by need."""
    return [
        *_budget_cases(model),
        *_field_cases(model),
        *_body_cases(model),
        *_media_cases(model),
        *_openai_cases(model),
    ]


def _chat(name: str, body: dict[str, Any], **headers: str) -> Case:
    return Case(name, CHAT, json.dumps(body).encode(), JSON_TYPE | headers)


def _completion(name: str, model: str, **more: Any) -> Case:
    body = {"model": model, "prompt": "what", "max_tokens": 4} | more
    return Case(name, COMPLETION, json.dumps(body).encode())


def _budget_cases(model: str) -> Iterator[Case]:
    for budget in BUDGETS:
        label = f"budget {str(budget)[:20]!r} {type(budget).__name__}"
        yield _chat(f"chat {label}", chat_body(model, vtr={"budget": budget}))
        yield _chat(f"stream {label}", chat_body(model, vtr={"budget": budget}, stream=True))
        yield _completion(f"completion {label}", model, vtr={"budget": budget})
    for schedule in SCHEDULES:
        label = f"schedule {str(schedule)[:20]!r} {type(schedule).__name__}"
        yield _chat(label, chat_body(model, vtr={"schedule": schedule}))
    for value in HEADERS:
        headers = JSON_TYPE | {"x-vtr-budget": value}
        content = json.dumps(chat_body(model)).encode()
        yield Case(f"header {value!r}", CHAT, content, headers)


def _field_cases(model: str) -> Iterator[Case]:
    for index, value in enumerate(FIELDS):
        yield _chat(f"vtr field {index} {value!r:.40}", chat_body(model, vtr=value))
        yield _completion(f"completion vtr field {index}", model, vtr=value)
    for index, value in enumerate(WAYS):
        yield _chat(f"way {index} {value!r:.40}", chat_body(model, vtr=value))
        yield _chat(f"way {index}, stream", chat_body(model, vtr=value, stream=True))
    for alias in ALIASES:
        yield _chat(f"alias {alias!r:.20}", chat_body(f"{model}@{alias}"))
    for index, value in enumerate(INLINE + NO_LISTS):
        yield _chat(f"inline {index} {value!r:.40}", chat_body(model, vtr=value))
        yield _completion(f"completion inline {index}", model, vtr=value)
    both = chat_body(model, vtr={"budget": 0.5})
    yield Case(
        "header and body", CHAT, json.dumps(both).encode(), JSON_TYPE | {"x-vtr-budget": "1"}
    )
    for index, xargs in enumerate(XARGS):
        yield _chat(f"wire keys {index}", chat_body(model, vllm_xargs=xargs))
        yield _completion(f"completion wire keys {index}", model, vllm_xargs=xargs)
    yield _chat("beam search", chat_body(model, vtr={"budget": 0.5}, use_beam_search=True, n=2))
    yield _chat("prompt logprobs", chat_body(model, vtr={"budget": 0.5}, prompt_logprobs=1))


def _body_cases(model: str) -> Iterator[Case]:
    for path in (CHAT, COMPLETION):
        for index, content in enumerate(BODIES):
            yield Case(f"body {index} on {path}", path, content)
    good = json.dumps(chat_body(model)).encode()
    yield Case("truncated body", CHAT, good[: len(good) // 2])
    yield Case("wrong content type", CHAT, good, {"content-type": "text/plain"})
    yield Case("form", CHAT, b"model=demo", {"content-type": "application/x-www-form-urlencoded"})


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _media_cases(model: str) -> Iterator[Case]:
    png = picture()
    broken = bytearray(png)
    broken[40:60] = b"\xff" * 20
    urls: dict[str, Any] = {
        "empty data": "data:image/png;base64,",
        "empty url": "",
        "no comma": "data:image/png;base64",
        "bad base64": "data:image/png;base64,@@@not*base64@@@",
        "cut base64": data_url(png)[:-3],
        "text as image": data_url(b"hello, I am no image"),
        "text as text": data_url(b"hello", "text/plain"),
        "not base64": "data:image/png,rawbytes",
        "truncated png": data_url(png[: len(png) // 2]),
        "png header only": data_url(png[:8]),
        "broken png": data_url(bytes(broken)),
        "zip": data_url(b"PK\x03\x04" + bytes(100)),
        "svg": data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        "bomb": data_url(_bomb(60_000, 60_000)),
        "largest bomb": data_url(_bomb(2**31 - 1, 2**31 - 1)),
        "wide bomb": data_url(_bomb(2**31 - 1, 1)),
        "no pixels": data_url(_bomb(0, 0)),
        "short of pixels": data_url(_bomb(3000, 3000)),
        "file": "file:///etc/passwd",
        "file with host": "file://localhost/etc/passwd",
        "ftp": "ftp://127.0.0.1/image.png",
        "gopher": "gopher://127.0.0.1/",
        "javascript": "javascript:alert(1)",
        "path": "/etc/passwd",
        "no scheme": "image.png",
        "http without host": "http://",
        "http bad port": "http://127.0.0.1:99999/x.png",
        "http refused": "http://127.0.0.1:1/x.png",
        "http no such host": "http://nosuch.invalid/x.png",
        "url is number": 5,
        "url is null": None,
        "url is list": ["a"],
    }
    for name, url in urls.items():
        body = chat_body(model)
        body["messages"][0]["content"][0]["image_url"] = {"url": url}
        yield _chat(f"image {name}", body)
        yield _chat(f"image {name} with budget", body | {"vtr": {"budget": 0.5}, "stream": True})


def _openai_cases(model: str) -> Iterator[Case]:
    yield _chat("wrong model", chat_body("nosuch"))
    yield _completion("completion wrong model", "nosuch")
    changes: dict[str, Any] = {
        "model": [5, ["a"], {}],
        "max_tokens": [-1, -(10**6), "many", 1.5, 10**30, [], {}],
        "messages": ["text", {}, 5, [5], [{}], ["a"], [{"role": "user", "content": [{"type": 7}]}]],
        "temperature": ["hot", -1, [], float("nan")],
        "top_p": [0, -1, 2, "p"],
        "n": [0, -1, "two", 10**9, 1.5],
        "stop": [5, [5], {}],
        "stream": ["maybe", 5, []],
        "seed": ["s", 10**30],
        "response_format": ["json", {"type": "nosuch"}, 5],
        "tools": ["hammer", 5, [5]],
        "logit_bias": ["a", {"a": "b"}, {"999999999": 1}],
        "top_logprobs": ["a", -5, 10**6],
        "vllm_xargs": ["a", 5, [1]],
    }
    for key, values in changes.items():
        for value in values:
            yield _chat(f"{key} = {value!r:.30}", chat_body(model) | {key: value})
    for size in (0, 1, 3):  # what is left has no place for the image
        yield _chat(f"truncated to {size}", chat_body(model, truncate_prompt_tokens=size))
    for kind in (None, 5, [], "nosuch"):
        body = chat_body(model)
        body["messages"][0]["content"][0]["type"] = kind
        yield _chat(f"part of type {kind!r}", body)
    for value in ([None], "a", [[]], {"regex": 5}):
        yield _completion(f"structured outputs {value!r}", model, structured_outputs=value)
    yield _completion("no prompt", model, prompt=None)
    for prompt in (5, {}, [[]], ["a", 5], [10**9], [-1], [[10**9]]):
        yield _completion(f"prompt = {prompt!r:.30}", model, prompt=prompt)
    yield _chat("prompt too long", chat_body(model) | {"messages": [_long_message()]})
    yield _completion("completion too long", model, prompt="what " * 100_000)


def _long_message() -> dict[str, Any]:
    return {"role": "user", "content": "what " * 100_000}
