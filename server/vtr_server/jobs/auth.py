"""The bearer token, checked before anything of a request is read."""

import hmac

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vtr_server.http.errors import http_error_body

__all__ = ["BearerToken"]

_OPEN = ("/health",)


class BearerToken:
    """Answers 401 to every request but those for health that do not carry the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN and not self._is_known(scope):
            message = "the bearer token is missing or wrong; send Authorization: Bearer TOKEN"
            answer = JSONResponse(
                http_error_body(401, message), 401, headers={"WWW-Authenticate": "Bearer"}
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # headers are read as latin-1, so this gives back the bytes that were sent
        same = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        return scheme.lower() == "bearer" and same
