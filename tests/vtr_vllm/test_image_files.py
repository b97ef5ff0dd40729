"""A file becomes the pixels that a viewer shows, or is refused by name."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vtr_vllm.errors import InvalidMedia
from vtr_vllm.image_files import FORMATS, check_header, decode_rgb, media_type

WIDTH, HEIGHT = 24, 16
GREY, RGB, INDEXED, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
"""Colour types of PNG."""


def drawn() -> Image.Image:
    """A picture that looks different in every orientation and has all shades."""
    down, right = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([right * 10, down * 15, (right * down * 7) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, form: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(samples: np.ndarray, depth: int, kind: int, *chunks: bytes) -> bytes:
    """A PNG as its specification has it, of depths and keys that Pillow does not write.

    ``samples`` is (height, width) or (height, width, channels), each value in [0, 2**depth).
    """
    height, width = samples.shape[:2]
    rows = []
    for row in samples.reshape(height, -1):
        if depth == 16:
            rows.append(row.astype(">u2").tobytes())
        else:
            bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
            rows.append(np.packbits(bits.astype(np.uint8).ravel()).tobytes())
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def on(image: Image.Image, color: Any = "white") -> Image.Image:
    """What is seen of an RGBA picture on a ground of one colour."""
    ground = Image.new("RGB", image.size, color)
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def with_clear_corner() -> Image.Image:
    image = drawn().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 8, 8))
    image.paste((200, 10, 10, 100), (8, 8, 16, 16))
    return image


def wide(image: Image.Image) -> np.ndarray:
    """The samples in 16 bits, white as 65535."""
    return np.asarray(image).astype(np.uint16) * 257


IMAGE = drawn()
PALETTE = IMAGE.quantize(200)
CLEAR_PALETTE = with_clear_corner().quantize(200)
CMYK = encode(IMAGE.convert("CMYK"), "JPEG", quality=95)
PROGRESSIVE = encode(IMAGE, "JPEG", quality=95, progressive=True)


def reopened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def turned(orientation: int) -> bytes:
    """A PNG whose EXIF block turns it upright again."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(IMAGE.transpose(back[orientation]), "PNG", exif=exif)


SEEN: dict[str, tuple[bytes, Image.Image]] = {
    "16-bit greyscale PNG": (
        encode(Image.fromarray(wide(IMAGE.convert("L")))),
        IMAGE.convert("L").convert("RGB"),
    ),
    "16-bit RGB PNG": (png(wide(IMAGE), 16, RGB), IMAGE),
    "8-bit greyscale PNG": (encode(IMAGE.convert("L")), IMAGE.convert("L").convert("RGB")),
    "palette PNG": (encode(PALETTE), PALETTE.convert("RGB")),
    "RGBA PNG with a clear corner": (encode(with_clear_corner()), on(with_clear_corner())),
    "GIF of one frame": (encode(PALETTE, "GIF"), PALETTE.convert("RGB")),
    "WebP without loss": (encode(IMAGE, "WEBP", lossless=True), IMAGE),
    "BMP": (encode(IMAGE, "BMP"), IMAGE),
    "CMYK JPEG": (CMYK, reopened(CMYK)),
    "progressive JPEG": (PROGRESSIVE, reopened(PROGRESSIVE)),
    # and their siblings
    "palette PNG with clear entries": (
        encode(CLEAR_PALETTE),
        on(CLEAR_PALETTE.convert("RGBA")),
    ),
    "WebP with a clear corner": (
        encode(with_clear_corner(), "WEBP", lossless=True, exact=True),
        on(with_clear_corner()),
    ),
    "grey and alpha of 16 bits": (
        png(wide(with_clear_corner().convert("LA")), 16, GREY_ALPHA),
        on(with_clear_corner().convert("LA").convert("RGBA")),
    ),
    "RGBA of 16 bits": (png(wide(with_clear_corner()), 16, RGB_ALPHA), on(with_clear_corner())),
    "black and white PNG": (encode(IMAGE.convert("1")), IMAGE.convert("1").convert("RGB")),
    "black and white BMP": (encode(IMAGE.convert("1"), "BMP"), IMAGE.convert("1").convert("RGB")),
    "greyscale JPEG": (
        encode(IMAGE.convert("L"), "JPEG"),
        reopened(encode(IMAGE.convert("L"), "JPEG")),
    ),
    "GIF with a clear colour": (
        encode(CLEAR_PALETTE, "GIF"),
        reopened(encode(CLEAR_PALETTE, "GIF"))
        if "transparency" not in Image.open(io.BytesIO(encode(CLEAR_PALETTE, "GIF"))).info
        else on(Image.open(io.BytesIO(encode(CLEAR_PALETTE, "GIF"))).convert("RGBA")),
    ),
    **{f"PNG turned by EXIF {n}": (turned(n), IMAGE) for n in range(2, 9)},
}


@pytest.mark.parametrize("name", SEEN)
def test_a_file_becomes_the_pixels_that_a_viewer_shows(name: str) -> None:
    data, shown = SEEN[name]
    got = decode_rgb(data)
    assert got.mode == "RGB"
    assert got.size == shown.size
    assert got.tobytes() == shown.tobytes()
    assert ImageOps.exif_transpose(got).tobytes() == shown.tobytes()  # a processor's own turn


@given(st.integers(0, 65535))
def test_16_bit_grey_is_scaled_and_rounded(sample: int) -> None:
    data = png(np.full((2, 2), sample), 16, GREY)
    assert decode_rgb(data).getpixel((1, 1)) == (round(sample * 255 / 65535),) * 3


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_key_colour_of_grey_is_clear_at_every_depth(depth: int, place: int) -> None:
    """PNG has the key at the file's own depth, whatever the samples are decoded to."""
    top = (1 << depth) - 1
    levels = sorted({0, min(2, top), top // 2, top})
    key = levels[min(place, len(levels) - 1)]
    data = png(np.array([levels]), depth, GREY, chunk(b"tRNS", struct.pack(">H", key)))
    got = np.asarray(decode_rgb(data, background=(9, 8, 7)))[0].tolist()
    assert got == [[9, 8, 7] if v == key else [round(v * 255 / top)] * 3 for v in levels]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_key_colour_of_rgb_is_clear(depth: int) -> None:
    pixels = np.array([[[1, 2, 3], [200, 2, 3]]]) * (257 if depth == 16 else 1)
    data = png(pixels, depth, RGB, chunk(b"tRNS", struct.pack(">3H", *pixels[0, 0])))
    assert np.asarray(decode_rgb(data)).tolist() == [[[255] * 3, [200, 2, 3]]]


def test_the_ground_under_what_is_clear_can_be_chosen() -> None:
    got = decode_rgb(encode(with_clear_corner()), background=(0, 0, 255))
    assert got.tobytes() == on(with_clear_corner(), (0, 0, 255)).tobytes()


def test_orientation_is_found_in_xmp_too() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:li tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(IMAGE.transpose(Image.Transpose.ROTATE_90), "WEBP", lossless=True, xmp=xmp)
    assert decode_rgb(data).tobytes() == IMAGE.tobytes()


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of (tag, type, count, the value or its place in four bytes)."""
    written = b"".join(
        struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries
    )
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return head + written + struct.pack("<I", 0)


SHORT, ASCII = 3, 2
UPRIGHT_AGAIN = (0x0112, SHORT, 1, b"\x06\0\0\0")


@pytest.mark.parametrize(
    "odd",
    [
        (SHORT, 1, b"\0\0\0\0"),
        (SHORT, 1, b"\x09\0\0\0"),
        (ASCII, 2, b"6\0\0\0"),
        (99, 1, b"\x06\0\0\0"),
    ],
)
def test_an_orientation_that_is_none_turns_nothing(odd: tuple[int, int, bytes]) -> None:
    data = encode(IMAGE, exif=exif_block((0x0112, *odd)))
    assert decode_rgb(data).tobytes() == IMAGE.tobytes()


@pytest.mark.parametrize(
    "odd",
    [
        (0x010F, 11, 1, b"\0\0\0\0"),  # a maker that is a float: AttributeError
        (0x011A, 7, 1, b"a\0\0\0"),  # a resolution of undefined type: TypeError
        (0x0128, ASCII, 2, b"a\0\0\0"),  # its unit as a text: struct.error
        (0x011A, 5, 1, b"\xff\xff\xff\x7f"),  # its place far beyond the block
    ],
)
def test_odd_entries_beside_the_orientation_do_no_harm(odd: tuple[int, int, int, bytes]) -> None:
    """Pillow's exif_transpose writes the block anew, and stops at an entry that it cannot write."""
    image = IMAGE.transpose(Image.Transpose.ROTATE_90)
    data = encode(image, exif=exif_block(UPRIGHT_AGAIN, odd))
    assert decode_rgb(data).tobytes() == IMAGE.tobytes()


def test_of_a_phones_mpo_the_first_picture_is_taken() -> None:
    other = Image.new("RGB", IMAGE.size)
    data = encode(IMAGE, "MPO", save_all=True, append_images=[other], quality=95)
    assert decode_rgb(data).tobytes() == reopened(data).tobytes()
    assert media_type(data) == "image/jpeg"


@pytest.mark.parametrize("form", FORMATS)
def test_the_media_type_is_that_of_the_bytes(form: str) -> None:
    assert media_type(encode(IMAGE, form)) == f"image/{form.lower()}"


# What is refused


def refusal(data: bytes) -> str:
    """The one refusal of all three functions."""
    said = []
    for read in (check_header, decode_rgb, media_type):
        with pytest.raises(InvalidMedia) as error:
            read(data)
        said.append(str(error.value))
    assert len(set(said)) == 1
    return said[0]


@pytest.mark.parametrize("form", FORMATS)
def test_pixels_at_the_limit_pass_and_beyond_do_not(form: str) -> None:
    data = encode(IMAGE, form)
    assert decode_rgb(data, WIDTH * HEIGHT).size == (WIDTH, HEIGHT)
    for read in (check_header, decode_rgb):
        with pytest.raises(InvalidMedia, match="24 x 16 = 384 pixels; at most 383 are allowed"):
            read(data, WIDTH * HEIGHT - 1)


@pytest.mark.parametrize("side", [4097, 13_000, 60_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    head = struct.pack(">IIBBBBB", side, side, 8, RGB, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(999)))
    assert "at most 16777216" in refusal(data)


@pytest.mark.parametrize("size", [(201, 1), (1, 201)])
def test_a_line_is_refused_since_processors_scale_it_up(size: tuple[int, int]) -> None:
    assert "at most 200 times the other" in refusal(encode(Image.new("L", size)))
    check_header(encode(Image.new("L", (200, 1))))


def riff(kind: bytes, head: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(head)) + head
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "file",
    [
        riff(b"VP8X", b"\2\0\0\0" + (16382).to_bytes(3, "little") * 2),
        riff(b"VP8L", b"\x2f" + (16382 | 16382 << 14).to_bytes(4, "little") + bytes(5)),
        riff(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383)),
    ],
    ids=["extended", "lossless", "lossy"],
)
def test_a_large_webp_is_refused_before_pillow_has_a_canvas_for_it(
    file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def canvas(*_: Any) -> None:
        raise AssertionError("Pillow opened it")

    monkeypatch.setattr("PIL._webp.WebPAnimDecoder", canvas)
    for look in (check_header, decode_rgb, media_type):
        with pytest.raises(InvalidMedia, match="16383 x 16383 = 268402689 pixels"):
            look(file)


@given(st.integers(1, 60), st.integers(1, 60), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_webp_is_as_large_as_its_first_bytes_say(
    width: int, height: int, lossless: bool, clear: bool
) -> None:
    made = Image.new("RGBA" if clear else "RGB", (width, height), (1, 2, 3, 4)[: 3 + clear])
    file = encode(made, "WEBP", lossless=lossless)
    assert check_header(file, width * height) == (width, height)
    with pytest.raises(InvalidMedia, match=f"{width} x {height} = "):
        check_header(file, width * height - 1)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])
    assert f"the {form} image is animated; send one frame" in refusal(data)


@pytest.mark.parametrize("form", ["TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "AVIF"])
def test_other_formats_are_not_opened(form: str) -> None:
    said = refusal(encode(IMAGE, form))
    assert re.search(r"no image of a format that is read; send one of PNG, JPEG", said)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"<svg/>"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    refusal(data)


@pytest.mark.parametrize("name", SEEN)
def test_a_file_that_is_cut_is_refused(name: str) -> None:
    data, _ = SEEN[name]
    with pytest.raises(InvalidMedia):
        decode_rgb(data[: len(data) * 2 // 3])


@settings(max_examples=400)
@given(
    st.sampled_from(sorted(SEEN)),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 40),
)
def test_rubbish_decodes_or_is_refused_by_name(
    name: str, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(SEEN[name][0])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        got = decode_rgb(bytes(data[: len(data) - cut]), most_pixels=100_000)
    except InvalidMedia:
        return
    assert got.mode == "RGB"
    assert got.width * got.height <= 100_000
