"""A server of bare sockets that echoes, with our protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from vtr_server.http.message_limits import HTTPProtocol

DELAY = 0.0
"""Seconds before an answer."""


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Says the path and the length of the body, of which ``/refused`` awaits none."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "switched"})
        await send({"type": "websocket.close"})
        return
    length, more = 0, scope["path"] != "/refused"
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await asyncio.sleep(DELAY)
    said = f"{scope['path']} {length};".encode()
    start = {"type": "http.response.start", "status": 200}
    await send(start | {"headers": [(b"content-length", str(len(said)).encode())]})
    await send({"type": "http.response.body", "body": said})


@contextlib.contextmanager
def echoing(keep_alive: int = 5) -> Iterator[int]:
    """The port of a server that runs as long as the context; ``keep_alive`` in seconds."""
    config = uvicorn.Config(
        echo,
        http=HTTPProtocol,
        lifespan="off",
        log_level="critical",
        timeout_keep_alive=keep_alive,
    )
    server = uvicorn.Server(config)
    bound = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def talk(port: int, *pieces: bytes | float) -> bytes:
    """What the server says until it closes; a number among the pieces is a pause of seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for piece in pieces:
            if isinstance(piece, float):
                time.sleep(piece)
            else:
                connection.sendall(piece)
        said = b""
        with contextlib.suppress(ConnectionError):
            while got := connection.recv(65536):
                said += got
    return said
