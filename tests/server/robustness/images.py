"""Image parts of requests, few of which hold an image that the server should take.

Drawn from bounded sets: an engine keeps every image that it decodes for a while, and what is to be
told from a leak must not grow with the number of requests.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from tests.server.bad_input import data_url
from tests.server.pictures import image, png_of_size

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")
SIZES = ((1, 1), (2, 400), (400, 2), (1, 1000), (3, 7), (56, 56), (168, 168), (700, 700))
"""Small enough in every format for ``BODY_BYTES``: a client that is cut off there may see a reset."""
SCHEMES = ("file", "ftp", "gopher", "javascript", "blob", "ws", "HTTP", "s3", "data", "")
HOSTS = (
    *("127.0.0.1:1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0", "2130706433", "0x7f.1"),
    *("169.254.169.254/latest/meta-data", "10.0.0.1:1", "user:pass@127.0.0.1", "nosuch.invalid"),
    *("127.0.0.1:99999", "[", "a b", "\u2488", "x" * 300, ".", "%00", "-", "1e3"),
)
URLS = (
    *("", " ", "a", "data:", "data:,", "data:image/png", "data:image/png;base64", "data:;base64,"),
    *("data:image/png;base64,", "data:image/png,abc", "data:image/png;base64,====", "//x/y.png"),
    *("data:image/png;charset=utf-8;base64,aGk=", "data:application/json;base64,e30=", "\x00"),
    *("data:image/png;base64,aGk", "data:image/png;base64,a\nGk=", "DATA:IMAGE/PNG;BASE64,aGk="),
    *("data:image/jpeg;base64,\u00e4\u00f6", "data:video/mp4;base64,AAAA", "data:text/html,<b>"),
    *("data:image/png;base64;base64,aGk=", "data:image/png;x=" + "y" * 5000 + ";base64,aGk="),
)
CLAIMED = ((0, 0), (0, 5), (5, 0), (3000, 3000), (60000, 60000), (2**31 - 1, 1), (1, 2**31 - 1))
EXIF = (
    *(
        b"Exif\x00\x00",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff",
        b"Exif\x00\x00MM" + b"\xff" * 64,
    ),
    *(b"", b"\x00" * 1000, b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + b"\x12\x01" * 200),
)
FLIPS = 24


def of_mode(mode: str, size: tuple[int, int]) -> bytes:
    """A PNG or, for what PNG cannot hold, a JPEG or TIFF in this mode."""
    file = BytesIO()
    form = {"CMYK": "JPEG", "YCbCr": "JPEG", "F": "TIFF", "I": "TIFF"}.get(mode, "PNG")
    Image.new(mode, size).save(file, form)
    return file.getvalue()


def with_exif(exif: bytes) -> bytes:
    """A JPEG with these bytes where its EXIF data is."""
    file = BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def damaged(data: bytes, seed: int) -> bytes:
    """Cut short, overwritten, with bytes left out or put in: which is up to ``seed``."""
    at = len(data) * (seed + 1) // (FLIPS + 1)
    return (
        data[:at],
        data[:at] + bytes([data[at] ^ (1 << seed % 8)]) + data[at + 1 :],
        data[:at] + b"\xff" * 16 + data[at + 16 :],
        data[:at] + data[at + 1 + seed :],
        data[:at] + data[:40] + data[at:],
        bytes(reversed(data[: at + 1])),
    )[seed % 6]


_whole = st.one_of(
    st.builds(image, st.sampled_from(FORMATS), st.sampled_from(SIZES)),
    st.builds(of_mode, st.sampled_from(MODES), st.sampled_from(SIZES)),
    st.builds(image, st.sampled_from(("GIF", "WEBP", "PNG")), st.just((8, 8)), st.integers(2, 3)),
    st.builds(with_exif, st.sampled_from(EXIF)),
)
_small = st.builds(image, st.sampled_from(FORMATS), st.sampled_from(((3, 7), (56, 56))))
_broken = st.one_of(
    st.builds(damaged, _small, st.integers(0, FLIPS - 1)),
    st.builds(lambda size: png_of_size(*size), st.sampled_from(CLAIMED)),
    st.sampled_from(
        (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBP")
    ),
    st.binary(max_size=60),
)
urls = st.one_of(
    st.builds(data_url, _whole),
    st.builds(
        data_url, _whole, st.sampled_from(("image/jpeg", "text/plain", "", "image/*", "video/mp4"))
    ),
    st.builds(data_url, _broken),
    st.sampled_from(URLS),
    st.builds("{}://{}/x.png".format, st.sampled_from(("http", "https")), st.sampled_from(HOSTS)),
    st.builds("{}://{}".format, st.sampled_from(SCHEMES), st.sampled_from(HOSTS)),
)
"""What may stand where the address of an image is wanted."""


def parts(place: str) -> st.SearchStrategy[Any]:
    """A part of a message with such an address; ``place`` is ``image_url`` or ``input_image``."""
    detail = st.sampled_from(("low", "high", "auto", "", "LOW", 5, None, []))
    if place == "input_image":
        return st.builds(
            lambda url, detail: {"type": place, "image_url": url, "detail": detail}, urls, detail
        )
    return st.one_of(
        st.builds(lambda url: {"type": place, place: {"url": url}}, urls),
        st.builds(
            lambda url, detail: {"type": place, place: {"url": url, "detail": detail}}, urls, detail
        ),
        st.builds(lambda url: {"type": place, place: url}, urls),
        st.builds(
            lambda kind, url: {"type": kind, kind: {"url": url}},
            st.sampled_from(("video_url", "audio_url", "image_embeds", "input_audio", "image_pil")),
            urls,
        ),
    )
