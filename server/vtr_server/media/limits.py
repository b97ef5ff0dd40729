"""What an image may be and where it may come from, checked before it is decoded or fetched.

An address is judged where it cannot lie any more: when a socket is made for it. So neither another
spelling, a redirect, nor a name server that answers differently the second time leads elsewhere.
"""

import ipaddress
import socket
from typing import Any

import aiohttp
from PIL import Image
from yarl import URL

from vtr_server.policy.settings import LimitSettings, MediaSettings
from vtr_vllm.errors import InvalidMedia, show
from vtr_vllm.image_files import check_header, decode_rgb

__all__ = ["MediaGuard", "is_public"]

SCHEMES = ("http", "https")

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's own services, at an address that is public by its number
        "192.0.0.0/24",  # protocol assignments, Oracle's metadata among them; older Pythons: a /29
        "64:ff9b:1::/48",  # NAT64 inside of a network
    )
)
"""What Python's ``is_global`` takes for public."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_V4_COMPATIBLE = ipaddress.ip_network("::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, also inside of an IPv6 address."""
    inner = _embedded(address)
    if inner is not None:
        return is_public(inner)
    special = (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_link_local
        or address.is_loopback
        or address.is_private
        or getattr(address, "is_site_local", False)
    )
    return address.is_global and not special and not any(address in net for net in _NOT_PUBLIC)


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to, where it is one of the known ways."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    if address.teredo:
        return address.teredo[1]
    if address in _NAT64 or address in _V4_COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


class MediaGuard:
    """Where this server may fetch from, and how large an image may be."""

    def __init__(self, media: MediaSettings, limits: LimitSettings) -> None:
        self._domains = frozenset(_plain(domain) for domain in media.domains)
        self._private = media.private_addresses
        self._video_files = media.video_files
        self._most_pixels = limits.image_pixels
        self.most_bytes = limits.body_bytes
        """Of one file that is fetched for no request, as for a line of a batch file."""
        self._most_frames = limits.video_frames

    def check_image(self, data: bytes) -> tuple[int, int]:
        """(width, height) of an image by its header; raises InvalidMedia for one of no use."""
        return check_header(data, self._most_pixels)

    def decode_image(self, data: bytes, background: tuple[int, int, int]) -> Image.Image:
        """The pixels of an image in RGB, as ``decode_rgb``; raises InvalidMedia."""
        return decode_rgb(data, self._most_pixels, background)

    def check_frames(self, frames: int, most: int | None) -> None:
        """Refuse a video of more frames than the server takes, or than ``most``."""
        most = min(self._most_frames, most or self._most_frames)
        if frames > most:
            raise InvalidMedia(
                f"the video has {frames} frames; at most {most} are taken: send fewer of them"
            )

    def check_video_file(self) -> None:
        """Refuse a video that is no list of frames, unless the operator allows it."""
        if not self._video_files:
            raise InvalidMedia(
                "the video is a file, which this server does not open; send its frames as images:"
                " data:video/jpeg;base64,FRAME,FRAME,... (or set media.video_files)"
            )

    def check_url(self, url: str) -> None:
        """Refuse an address by what it says itself; raises InvalidMedia."""
        try:
            self._check(URL(url))
        except ValueError as err:
            raise InvalidMedia(f"address {show(url)} is malformed ({err})") from err

    def session(self) -> aiohttp.ClientSession:
        """A client whose every connection and redirect is checked; must be made in a loop.

        Proxies of the environment would resolve names themselves, out of our sight: they are used
        only where private addresses are allowed anyway. Clients share no cookies. Bodies come as they
        were sent: what inflates here could be a thousand times what was counted. The number of
        connections is bounded per caller, by whoever fetches.
        """
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=self._socket),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            middlewares=(self._check_request,),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=self._private,
        )

    def check_address(self, host: str) -> None:
        """Refuse a numeric address that is not public; raises InvalidMedia."""
        if not self._private and not is_public(ipaddress.ip_address(host.partition("%")[0])):
            raise InvalidMedia(
                f"address {show(host)} is not of the public internet, and this server fetches from"
                " there only; send the image as a data URL"
            )

    def _check(self, url: URL) -> None:
        if url.scheme not in SCHEMES or not url.host:
            raise InvalidMedia(
                f"address {show(str(url))} is none of http(s)://HOST/...; send one, or a data URL"
            )
        if url.raw_user is not None or url.raw_password is not None:
            raise InvalidMedia("the address names a user; send one without NAME@ before the host")
        if self._domains and _plain(url.host) not in self._domains:
            raise InvalidMedia(
                f"host {show(url.host)} is none of those that this server fetches from:"
                f" {show(sorted(self._domains))}"
            )

    async def _check_request(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Called for the first address and for each that a redirect leads to."""
        self._check(request.url)
        return await handler(request)

    def _socket(self, address: Any) -> socket.socket:
        """Called with what is connected to: (family, type, protocol, name, (host, port, ...))."""
        family, kind, protocol, _, where = address
        self.check_address(where[0])
        return socket.socket(family, kind, protocol)


def _plain(host: str) -> str:
    """A host name in the one spelling that names are compared in."""
    return host.lower().rstrip(".")
