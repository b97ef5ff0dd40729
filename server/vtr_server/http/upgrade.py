"""HTTP/1.1 that ignores offers to switch to another protocol, but for WebSockets.

A server that does not want an offered protocol goes on in HTTP/1.1 (RFC 9110, section 7.8). Java's
HttpClient offers ``h2c`` with the request itself; uvicorn with httptools then takes the request's body
for the other protocol and answers as if there were none.
"""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["OfferlessProtocol"]

_OFFER = frozenset({b"upgrade", b"http2-settings"})
"""Headers that make the offer; ``Connection`` names them."""


class OfferlessProtocol(HttpToolsProtocol):
    """uvicorn's protocol; a request that offers another one is read as if it did not."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            elif self.scope["method"] == "CONNECT":  # always another protocol: this is no proxy
                self.send_400_response("CONNECT is for proxies.")
            else:
                self._read_without_offer(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():  # nothing begins: data_received decides what follows
            self.scope["method"] = self.parser.get_method().decode("ascii")
            return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _read_without_offer(self, rest: bytes) -> None:
        """Read the head once more, without the offer, and what follows it: the body."""
        head = [b"%s %s HTTP/%s" % self._request_line()]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _OFFER)
            if value and name not in _OFFER:
                head.append(b"%s: %s" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.data_received(b"\r\n".join([*head, b"", b""]) + rest)

    def _request_line(self) -> tuple[bytes, bytes, bytes]:
        method = self.scope["method"].encode("ascii")
        return method, self.url, self.parser.get_http_version().encode("ascii")
