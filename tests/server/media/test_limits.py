"""Images and addresses that must not get in, whatever they are dressed as."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vtr_server.media.limits
from tests.server.pictures import image, serve
from vtr_server.media.limits import MediaGuard, is_public
from vtr_server.policy.settings import LimitSettings, MediaSettings
from vtr_vllm.errors import InvalidMedia

INNER = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
]
INNER_V6 = ["::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"]
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"]


@pytest.mark.parametrize("text", INNER + INNER_V6)
def test_inner_addresses_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda v4: f"::ffff:{v4}",
        lambda v4: f"64:ff9b::{v4}",
        lambda v4: f"::{v4}",
        lambda v4: ipaddress.IPv6Address((0x2002 << 112) | (int(v4) << 80)),
        lambda v4: ipaddress.IPv6Address((0x20010000 << 96) | (int(v4) ^ 0xFFFFFFFF)),
    ],
)
@given(st.ip_addresses(v=4))
def test_an_inner_address_stays_one_inside_of_ipv6(
    wrap: Callable[[ipaddress.IPv4Address], object], v4: ipaddress.IPv4Address
) -> None:
    if not is_public(v4):
        assert not is_public(ipaddress.ip_address(str(wrap(v4))))


# Addresses that are fetched for real


def fetch(url: str, guard: MediaGuard) -> bytes:
    async def once() -> bytes:
        async with guard.session() as session, session.get(url) as answer:
            return await answer.read()

    return asyncio.run(once())


def guard(**media: Any) -> MediaGuard:
    return MediaGuard(MediaSettings(**media), LimitSettings(image_pixels=4096))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "localhost.",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "127.0.0.1.",
        "①②⑦.⓪.⓪.①",
    ],
)
def test_no_spelling_reaches_this_machine(host: str) -> None:
    async def attempt() -> None:
        async with serve(b"secret") as address:
            port = address.rpartition(":")[2]
            async with guard().session() as session:
                answer = await session.get(f"http://{host}:{port}/image")
                pytest.fail(f"reached it: {await answer.read()!r}")

    with pytest.raises((InvalidMedia, aiohttp.InvalidURL, aiohttp.ClientConnectorDNSError)):
        asyncio.run(attempt())


def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolve(monkeypatch, "innocent.example", "10.0.0.1")
    with pytest.raises(InvalidMedia, match=r"10\.0\.0\.1"):
        fetch("http://innocent.example/", guard())


def test_a_name_that_changes_its_mind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is public when it is looked at, and inner when it is connected to."""
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    _resolve(monkeypatch, "rebound.example", lambda: next(answers))
    _only_public(monkeypatch, "127.0.0.1")

    async def twice() -> bytes:
        async with serve(b"fine") as address:
            port = address.rpartition(":")[2]
            for expected in (b"fine", None):
                async with guard().session() as session:
                    answer = await session.get(f"http://rebound.example:{port}/image")
                    assert await answer.read() == expected
        return b""

    with pytest.raises(InvalidMedia, match=r"127\.0\.0\.2"):
        asyncio.run(twice())


@pytest.mark.parametrize("target", ["http://127.0.0.2:1/", "http://[::1]:1/", "http://0x7f.2/"])
def test_a_redirect_inside_is_refused(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    _only_public(monkeypatch, "127.0.0.1")

    async def follow() -> None:
        async with serve(b"") as address, guard().session() as session:
            await session.get(f"{address}/to", params={"url": target})

    with pytest.raises(InvalidMedia, match="not of the public internet"):
        asyncio.run(follow())


@pytest.mark.parametrize("target", ["http://localhost:1/", "file:///etc/hosts"])
def test_a_redirect_is_checked_as_the_first_address_is(target: str) -> None:
    ours = guard(private_addresses=True, domains=("127.0.0.1",))

    async def follow() -> None:
        async with serve(b"") as address, ours.session() as session:
            await session.get(f"{address}/to", params={"url": target})

    with pytest.raises((InvalidMedia, aiohttp.NonHttpUrlRedirectClientError)):
        asyncio.run(follow())


def test_private_addresses_can_be_allowed() -> None:
    async def get() -> bytes:
        async with serve(b"fine") as address, guard(private_addresses=True).session() as session:
            return await (await session.get(f"{address}/to?url=/image")).read()

    assert asyncio.run(get()) == b"fine"


def test_a_proxy_of_the_environment_sees_no_unchecked_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def get() -> None:
        async with serve(b"from the proxy") as proxy:
            monkeypatch.setenv("http_proxy", proxy)
            async with guard().session() as session:
                await session.get("http://127.0.0.1:1/image")

    with pytest.raises(InvalidMedia):
        asyncio.run(get())


# Addresses by what they say


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/x",
        "gopher://h/",
        "nothing",
        "//h/x",
        "javascript:1",
        "http://",
        "http:///x",
        "http://[::1/",
        "http://u@h/",
        "http://u:p@h/",
        "http://h:99999/",
    ],
)
def test_odd_addresses_are_refused(url: str) -> None:
    with pytest.raises(InvalidMedia):
        guard().check_url(url)


@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("https://images.example/x", True),
        ("https://IMAGES.example./x", True),
        ("https://images.example.evil.example/x", False),
        ("https://evil.example/images.example", False),
        ("https://sub.images.example/x", False),
        ("https://evil.example\\@images.example/x", False),
        ("https://images.example@evil.example/x", False),
        ("https://evil.example#@images.example/", False),
    ],
)
def test_only_listed_domains(url: str, passes: bool) -> None:
    ours = guard(domains=("Images.example",))
    if passes:
        ours.check_url(url)
    else:
        with pytest.raises(InvalidMedia):
            ours.check_url(url)


# Images


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pixels_at_the_limit_pass_and_beyond_do_not(form: str) -> None:
    assert guard().check_image(image(form, (64, 64))) == (64, 64)
    with pytest.raises(InvalidMedia, match="64 x 65 = 4160 pixels; at most 4096"):
        guard().check_image(image(form, (64, 65)))


@pytest.mark.parametrize("form", ["TIFF", "ICO", "PPM"])
def test_other_formats_are_not_opened(form: str) -> None:
    with pytest.raises(InvalidMedia, match="no image of a format that is read"):
        guard().check_image(image(form, (8, 8)))


# Videos


def test_a_video_is_its_frames() -> None:
    ours = guard()
    ours.check_frames(32, None)
    ours.check_frames(5, 5)
    for frames, most in ((33, None), (33, 64), (6, 5)):
        with pytest.raises(InvalidMedia, match=rf"has {frames} frames; at most"):
            ours.check_frames(frames, most)


def test_a_video_that_is_a_file_is_refused_unless_allowed() -> None:
    with pytest.raises(InvalidMedia, match="data:video/jpeg;base64,FRAME"):
        guard().check_video_file()
    guard(video_files=True).check_video_file()


def _resolve(monkeypatch: pytest.MonkeyPatch, name: str, address: str | Callable[[], str]) -> None:
    """Make this machine's resolver answer ``address`` for one name."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kw: Any) -> Any:
        if host in (name, name.encode()):
            host = address if isinstance(address, str) else address()
        return real(host, port, *args, **kw)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def _only_public(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let one address of this machine count as public: a server for the tests must be somewhere."""
    monkeypatch.setattr(vtr_server.media.limits, "is_public", lambda found: str(found) == address)
