"""Wishes for a budget in places where nobody reads them: refused by name, never run at full cost.

``extra_body`` is a thing of the openai package, ``metadata`` is for the client's own use, and a key that
is written otherwise than ``vtr`` is none. vLLM ignores all of them in silence.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from starlette.requests import Request

from vtr_server.policy.requested_budget import HEADER, REUSE_HEADER
from vtr_server.policy.vtr_field import EXAMPLE, VTRField
from vtr_vllm.errors import RequestError, show

__all__ = ["misplaced_in_body", "refuse_misplaced"]

FIELD = "vtr"
_ALONE = frozenset(VTRField.model_fields) - {"minimum", "maximum", "trace"}
"""Keys of the field that mean a budget at the top of a body too; the others are common words."""
_OF_CLIENTS = frozenset({"extra_body", "extra_headers", "extra_query"})
"""Arguments of the openai and anthropic packages, which put what these hold where it belongs."""
_OPTIONS = (
    "chat_template_kwargs",
    "kv_transfer_params",
    "media_io_kwargs",
    "metadata",
    "mm_processor_kwargs",
    "output_config",
    "reasoning",
    "stream_options",
    "vllm_xargs",
)
"""Objects of a body that hold options. Schemas of tools are none: they may name anything."""
_MESSAGES = frozenset({"input", "messages", "system"})
_PARTS = frozenset({"content", "image_url", "source"})
"""What leads from a body to its messages, and on to their parts; not into the inputs of tools."""


def misplaced_in_body(body: object) -> str | None:
    """The first place in a JSON body that asks for a budget and that nobody reads; None if none does."""
    return next(_places(body), None) if isinstance(body, Mapping) else None


def refuse_misplaced(place: str | None, request: Request) -> None:
    """Raise RequestError for ``place`` of the body, or for such a header or query parameter."""
    headers = (name for name in request.headers if name.startswith("x-vtr"))
    read = (HEADER.lower(), REUSE_HEADER.lower())
    others = (f"the header {name}" for name in headers if name not in read)
    query = (f"the query parameter {show(name)}" for name in _asking(request.query_params))
    if found := next(chain(others, query), place):
        raise RequestError(
            f"{found} asks for a budget where nobody reads it; {EXAMPLE}, at the top of the body, or send"
            f" the header {HEADER}"
        )


def _places(body: Mapping[str, Any]) -> Iterator[str]:
    for name in body:
        if name != FIELD and (name in _OF_CLIENTS or name in _asking((name,))):
            yield f"the body's {show(name)}"
    for name in _OPTIONS:
        if isinstance(options := body.get(name), Mapping):
            yield from (f"the body's {name}.{key}" for key in options if _is_ours(key))
    for name in sorted(_MESSAGES & body.keys()):
        yield from _in_parts(body[name], name, 6)


def _in_parts(node: Any, place: str, depth: int) -> Iterator[str]:
    """Keys of ours in messages, their parts, and what these hold of images."""
    if depth == 0:
        return
    if isinstance(node, list):
        for item in node:
            yield from _in_parts(item, place, depth - 1)
    elif isinstance(node, Mapping):
        for name, value in node.items():
            if _is_ours(name):
                yield f"{show(name)} inside of {place}"
            elif name in _PARTS:
                yield from _in_parts(value, f"{place}.{name}", depth - 1)


def _asking(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in _ALONE or _is_ours(name)]


def _is_ours(name: object) -> bool:
    """Whether a key is ``vtr`` in any writing, or begins with it: ``VTR``, ``vtr_budget``, ``x-vtr-tier``."""
    text = str(name).lower().removeprefix("x-").removeprefix("x_")
    return text == FIELD or text.startswith((f"{FIELD}_", f"{FIELD}-", f"{FIELD}."))
