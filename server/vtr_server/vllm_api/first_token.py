"""Tells when a stream has its first token, as it comes."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_on_first_token: ContextVar[Callable[[], None] | None] = ContextVar("vtr_first", default=None)
"""What to call when a request that was begun in this context has its first token."""


@contextmanager
def first_token(call: Callable[[], None]) -> Iterator[None]:
    """Have ``call`` called when what is begun inside the context has its first token."""
    token = _on_first_token.set(call)
    try:
        yield
    finally:
        _on_first_token.reset(token)


def tap_first_tokens(client: Any) -> None:
    """Let the engine client tell ``first_token``; one that tells already stays as it is."""
    stock = client.generate
    if getattr(stock, "vtr_tapped", False):
        return

    def generate(*args: Any, **kw: Any) -> AsyncIterator[Any]:
        call = _on_first_token.get()
        outputs = stock(*args, **kw)
        return outputs if call is None else _calling(call, outputs)

    generate.vtr_tapped = True  # type: ignore[attr-defined]
    client.generate = generate


async def _calling(call: Callable[[], None], outputs: Any) -> AsyncIterator[Any]:
    first = True
    try:
        async for output in outputs:
            if first:
                call()
                first = False
            yield output
    finally:
        await outputs.aclose()
