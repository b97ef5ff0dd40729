"""Which image files are read, and how they become RGB pixels: the same for server and search.

A file is judged by its header first, so that nothing is decoded which is refused. Every refusal is
an InvalidMedia.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image

from vtr_vllm.errors import InvalidMedia

__all__ = [
    "FORMATS",
    "LONGEST",
    "MOST_PIXELS",
    "check_header",
    "decode_rgb",
    "encode_png",
    "media_type",
]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What every client can write; other decoders of Pillow's have had their share of faults."""
MOST_PIXELS = 4096 * 4096
"""Width times height where nothing else is said."""
LONGEST = 200
"""Sides' ratio of an image. Processors that scale the shorter side to a fixed length, CLIP's among
them, make gigabytes of a line of pixels; Qwen's have this very bound."""

# What Pillow's readers let through from a broken file; found by fuzzing them.
_BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes it upright. Pillow's own exif_transpose also writes the rest of
the block anew, and fails where a camera left anything odd in it."""

_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of Pillow's with no more than 8 bits a channel, which its conversions keep."""
_TO_EIGHT_BITS = ((np.arange(1 << 16, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
"""16-bit sample -> 8-bit sample, rounded: PNG specification, 13.12. Pillow clips at 255."""


def check_header(encoded: bytes, most_pixels: int = MOST_PIXELS) -> tuple[int, int]:
    """(width, height) of a file that is not refused by its header.

    Refused are another format, too many pixels, a line, several frames. Nothing is decoded. Raises
    InvalidMedia.
    """
    with _opened(encoded, most_pixels) as image:
        _check(image, most_pixels)
        return image.size


def decode_rgb(
    encoded: bytes,
    most_pixels: int = MOST_PIXELS,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """Check a file, decode it to its end and return its pixels in mode RGB, as a viewer shows them.

    The orientation of EXIF or XMP is applied. Transparency, by alpha or by a key colour, is laid on
    ``background``. 16-bit samples are scaled to 8 bits. Colour profiles are not applied. Of a phone's
    MPO the first picture is taken. Raises InvalidMedia as ``check_header``, and for what does not
    decode.
    """
    with _opened(encoded, most_pixels) as image:
        _check(image, most_pixels)
        image.load()
        if image.format == "PNG":
            _mend_key_colour(image, encoded)
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        flat = _flat(image, background)
        upright = flat if turn is None else flat.transpose(turn)
        upright.info.clear()  # else a processor finds the orientation, and turns it once more
        return upright


def media_type(encoded: bytes) -> str:
    """The media type of a file, such as ``image/png``; raises InvalidMedia as ``check_header``."""
    with _opened(encoded, MOST_PIXELS) as image:
        _check(image, MOST_PIXELS)
        # A phone's MPO is a JPEG with more behind it, and nobody knows it by its own name.
        return "image/jpeg" if image.format == "MPO" else str(Image.MIME[str(image.format)])


def encode_png(image: Image.Image) -> bytes:
    """A file that holds these pixels."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def _opened(encoded: bytes, most_pixels: int) -> Iterator[Image.Image]:
    """The file, its header read; whatever Pillow raises here or in the block is an InvalidMedia."""
    if (size := _webp_size(encoded)) is not None:
        _check_pixels(*size, most_pixels)
    try:
        with Image.open(BytesIO(encoded), formats=FORMATS) as image:
            yield image
    except InvalidMedia:
        raise
    except Image.UnidentifiedImageError as err:
        raise InvalidMedia(
            f"the file, {len(encoded)} bytes, is no image of a format that is read; send one of"
            f" {', '.join(FORMATS)}"
        ) from err
    except Image.DecompressionBombError as err:  # Pillow's own limit, met before ours is looked at
        raise InvalidMedia(
            f"{err}; at most {most_pixels} pixels are allowed: scale it down"
        ) from err
    except _BROKEN as err:
        raise InvalidMedia(
            f"the image does not decode ({type(err).__name__}: {err}); send it whole, saved anew"
        ) from err


def _webp_size(encoded: bytes) -> tuple[int, int] | None:
    """(width, height) that the first bytes of a WebP claim; None for what is none, or cut off.

    Pillow has memory for two whole canvases as it opens one, before anybody can ask it for a size.
    """
    if len(encoded) < 30 or encoded[:4] != b"RIFF" or encoded[8:12] != b"WEBP":
        return None
    kind, head = encoded[12:16], encoded[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", head, 6)
    return width & 0x3FFF, height & 0x3FFF


def _check_pixels(width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise InvalidMedia(
            f"the image has {width} x {height} = {width * height} pixels; at most {most_pixels} are"
            " allowed: scale it down"
        )


def _check(image: Image.Image, most_pixels: int) -> None:
    width, height = image.size
    _check_pixels(width, height, most_pixels)
    if max(width, height) > LONGEST * min(width, height):
        raise InvalidMedia(
            f"the image has {width} x {height} pixels; one side may be at most {LONGEST} times the"
            " other: cut it"
        )
    # MPO is a JPEG of a phone with a second picture behind it, which is not read.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise InvalidMedia(f"the {image.format} image is animated; send one frame")


def _mend_key_colour(image: Image.Image, encoded: bytes) -> None:
    """Bring the key colour of a PNG (its tRNS) to the depth that Pillow decoded the samples to.

    Pillow leaves it at the file's own depth. Where it decoded 16 bits a channel to 8, so it is
    with the key: a colour that differs from it in the low bytes alone counts as the key.
    """
    key, depth = image.info.get("transparency"), encoded[24]  # IHDR always comes first
    if image.mode in ("1", "L") and isinstance(key, int) and depth in (1, 2, 4):
        image.info["transparency"] = min(255, key * 255 // ((1 << depth) - 1))
    elif image.mode == "RGB" and isinstance(key, tuple) and depth == 16:
        image.info["transparency"] = tuple(sample >> 8 for sample in key)


def _flat(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The pixels in mode RGB, without transparency and not yet turned."""
    if image.mode == "I;16":
        samples = np.asarray(image)
        flat = Image.fromarray(_TO_EIGHT_BITS[samples]).convert("RGB")
        if (key := image.info.get("transparency")) is not None:
            flat.paste(background, mask=Image.fromarray(samples == key))
        return flat
    if image.mode not in _EIGHT_BITS:
        raise InvalidMedia(f"the image is of mode {image.mode}; send one of 8 or 16 bits a channel")
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    flat = Image.new("RGB", clear.size, background)
    flat.paste(clear, mask=clear.getchannel("A"))
    return flat
