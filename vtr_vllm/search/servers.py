"""One running VTR server: what it serves, and what it answers or why it does not."""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx

from vtr_vllm.errors import ConfigurationError, ScheduleError
from vtr_vllm.schedules import ModelGeometry

_PROBE_SECONDS = 30.0
_LONGEST_TEXT = 500


@dataclass(frozen=True)
class Served:
    """What a server serves; the same throughout a fleet."""

    model: str
    geometry: ModelGeometry
    vllm: str | None
    """Release; None where the server does not say."""
    band_starts: tuple[int, ...] | None = None
    """First layers of its KV bands; None where the server does not say."""
    checkpoint: str | None = None
    """``checkpoint_digest`` of its model; None where the server does not say."""

    def __str__(self) -> str:
        bands = "" if self.band_starts is None else f", KV bands from layers {self.band_starts}"
        weights = "" if self.checkpoint is None else f", checkpoint {self.checkpoint[:12]}"
        return f"{self.model}, {self.geometry.fingerprint}, vllm {self.vllm}{bands}{weights}"


@dataclass(frozen=True)
class Trouble:
    """Why there is no answer now; there may be one later."""

    reason: str
    wait: float | None = None
    """Seconds that the server asks for."""
    full: bool = False
    """Whether it has too much to do (429), rather than failed."""


async def inspect(client: httpx.AsyncClient, url: str) -> Served | Trouble:
    """What a server serves; raises ConfigurationError if it is no VTR server."""
    found: dict[str, Any] = {}
    for path in ("/v1/models", "/v1/schedules", "/version"):
        response = await send(client, url + path)
        if isinstance(response, Trouble):
            return response
        if response.status_code == httpx.codes.NOT_FOUND and path == "/version":
            continue
        if response.status_code != httpx.codes.OK:
            raise ConfigurationError(
                f"{url}{path}: {error_text(response)}; give the address of a server started with"
                " `vtr serve`, such as http://127.0.0.1:8000, and its API key if it has one"
            )
        found[path] = response
    try:
        schedules = found["/v1/schedules"].json()
        bands, checkpoint = schedules.get("band_starts"), schedules.get("checkpoint")
        return Served(
            found["/v1/models"].json()["data"][0]["id"],
            ModelGeometry.from_dict(schedules["geometry"]),
            found["/version"].json()["version"] if "/version" in found else None,
            None if bands is None else tuple(map(int, bands)),
            None if checkpoint is None else str(checkpoint),
        )
    except (ValueError, KeyError, IndexError, TypeError, ScheduleError) as err:
        raise ConfigurationError(
            f"{url} does not say what it serves ({type(err).__name__}: {err}); give the address"
            " of a server started with `vtr serve`"
        ) from err


async def send(
    client: httpx.AsyncClient, url: str, body: bytes | None = None
) -> httpx.Response | Trouble:
    """POST ``body``, or GET without one: any answer but 429 and 5xx, which are trouble."""
    try:
        if body is None:
            response = await client.get(url, timeout=_PROBE_SECONDS)
        else:
            response = await client.post(url, content=body)
    except httpx.RequestError as err:
        return Trouble(f"{type(err).__name__}: {err}".removesuffix(": "))
    full = response.status_code == httpx.codes.TOO_MANY_REQUESTS
    if not full and not response.is_server_error:
        return response
    return Trouble(error_text(response), _retry_after(response.headers.get("Retry-After")), full)


def error_text(response: httpx.Response) -> str:
    """The status, and the message of an error in OpenAI's form or the beginning of the body."""
    error = error_of(response)
    message = error.get("message") or response.text[:_LONGEST_TEXT]
    return f"HTTP {response.status_code} {message}".rstrip()


def error_of(response: httpx.Response) -> dict[str, Any]:
    """OpenAI's error object; empty where the body holds none."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, of a header that holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def checked(url: str) -> str:
    """The address without a final slash; raises ConfigurationError."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as err:
        raise ConfigurationError(f"server {url!r}: {err}; give http://HOST:PORT") from err
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(f"server {url!r} is no address; give http://HOST:PORT")
    return url.rstrip("/")
