"""What the server knows of one request beside its ASGI scope, from the gate to the answer."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.exceptions import HTTPException

from vtr_server.gate.exchange import Exchange
from vtr_server.operations.outcomes import Outcome
from vtr_server.policy.settings import KeySettings
from vtr_vllm.errors import VTRError

__all__ = ["Caller", "RequestContext"]

_PLACE = "vtr_context"
"""Where it lies in ``scope["state"]``; read and written here alone."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    key: KeySettings | None
    """None on a server without keys, and for open routes."""
    bucket: str
    """Name of the allowance: the key's, or the address."""

    @property
    def name(self) -> str | None:
        """The key's name."""
        return self.key.name if self.key else None


class Observer(Protocol):
    """Who is told how a request ended; of several calls the first counts."""

    def end(self, outcome: Outcome) -> None:
        """The request is over."""


@dataclass
class RequestContext:
    """One request. The gate makes it; a route that counts how its request ends says so in it."""

    caller: Caller = Caller(None, "-")
    exchange: Exchange | None = None
    """The request's way through the gate; None where no gate stands before the routes."""
    on_admin_port: bool = False
    observer: Observer | None = None
    """Of a route that counts how the request ends, where it does not say so itself; the gate counts
    the others."""
    charged: bool = False
    """A prompt of it was charged for: the others follow, whatever the allowance is by then."""

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> "RequestContext":
        """The context of a request by its ASGI scope; a fresh one where it has none yet."""
        context: RequestContext = scope.setdefault("state", {}).setdefault(_PLACE, cls())
        return context

    def put_into(self, scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A copy of ``scope`` that has this context, whatever the other has."""
        return {**scope, "state": {**scope.get("state", {}), _PLACE: self}}

    @property
    def arrived(self) -> float:
        """When its head had been read, on the monotonic clock."""
        return self.exchange.arrived if self.exchange else time.monotonic()

    @property
    def cut_off(self) -> VTRError | HTTPException | None:
        """Why the gate ended a request that a route sees as a disconnect; None if it did not."""
        return self.exchange.failure if self.exchange else None
