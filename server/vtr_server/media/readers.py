"""Readers of media in two steps: the header, which decides; then the pixels, when there is room.

vLLM's own readers decode whatever they are given, and a video's reader opens files with FFmpeg, which
knows playlists that name other addresses.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from vtr_server.media.limits import MediaGuard
from vtr_server.media.request_media import bytes_limit

__all__ = ["DecodedMedium", "Medium", "reader_of"]


@dataclass
class DecodedMedium(MediaWithBytes[Any]):
    """A medium in memory: its pixels, and how many they are."""

    pixels: int = 0


@dataclass(frozen=True)
class Medium:
    """A medium that was looked at and not decoded."""

    pixels: int
    decode: Callable[[], Any]
    """Blocks while it decodes."""


class _Reader:
    """A reader of vLLM's, each of whose methods returns a ``Medium`` for what it would load.

    This one leaves the bounds to vLLM: of sound it has its own.
    """

    def __init__(self, reader: Any, guard: MediaGuard) -> None:
        self._reader = reader
        self._guard = guard

    def load_bytes(self, data: bytes) -> Medium:
        return Medium(0, partial(self._reader.load_bytes, data))

    def load_base64(self, media_type: str, data: str) -> Medium:
        return Medium(0, partial(self._reader.load_base64, media_type, data))

    def load_file(self, path: Path) -> Medium:
        return self.load_bytes(path.read_bytes())

    def get_max_bytes(self) -> int:
        """The most that is fetched of one file: our limit, or a lower one of vLLM's."""
        ours = bytes_limit() or self._guard.most_bytes
        vllms = (self._reader.get_max_bytes(), envs.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB * 2**20)
        return min([ours, *(limit for limit in vllms if limit and limit > 0)])


class _ImageReader(_Reader):
    """Decodes as the search does, unless the operator wants another mode than RGB of vLLM."""

    def load_bytes(self, data: bytes) -> Medium:
        width, height = self._guard.check_image(data)
        return Medium(width * height, partial(self._decode, data, width * height))

    def load_base64(self, _: str, data: str) -> Medium:
        return self.load_bytes(base64.b64decode(data, validate=True))

    def _decode(self, data: bytes, pixels: int) -> DecodedMedium:
        if self._reader.image_mode == "RGB":
            image = self._guard.decode_image(data, self._reader.rgba_background_color)
            return DecodedMedium(image, data, None, pixels)
        loaded = self._reader.load_bytes(data)
        return DecodedMedium(loaded.media, data, loaded.io_config, pixels)


class _Frames:
    """In the place of a video reader's image reader: one frame after the other."""

    def __init__(self, images: _ImageReader) -> None:
        self._images = images

    def load_base64(self, media_type: str, data: str) -> DecodedMedium:
        frame: DecodedMedium = self._images.load_base64(media_type, data).decode()
        return frame


class _VideoReader(_Reader):
    """Takes a video as its frames, each an image; a file only where the operator allows it."""

    def __init__(self, reader: VideoMediaIO, guard: MediaGuard) -> None:
        super().__init__(reader, guard)
        self._images = _ImageReader(reader.image_io, guard)
        reader.image_io = _Frames(self._images)

    def load_bytes(self, data: bytes) -> Medium:
        self._guard.check_video_file()
        return super().load_bytes(data)

    def load_base64(self, media_type: str, data: str) -> Medium:
        if media_type.lower() != "video/jpeg":
            self._guard.check_video_file()
            return super().load_base64(media_type, data)
        frames = data.split(",")
        most = self._reader.num_frames  # vLLM would drop the rest in silence; -1 is no limit
        self._guard.check_frames(len(frames), most if most > 0 else None)
        pixels = sum(self._images.load_base64(media_type, frame).pixels for frame in frames)
        return Medium(pixels, partial(self._decode, media_type, data, pixels))

    def _decode(self, media_type: str, data: str, pixels: int) -> DecodedMedium:
        loaded = self._reader.load_base64(media_type, data)
        return DecodedMedium(loaded.media, loaded.original_bytes, loaded.io_config, pixels)


def reader_of(reader: Any, guard: MediaGuard) -> Any:
    """One that returns a ``Medium`` of what ``reader`` of vLLM's would load."""
    if isinstance(reader, ImageMediaIO):
        return _ImageReader(reader, guard)
    if isinstance(reader, VideoMediaIO):
        return _VideoReader(reader, guard)
    return _Reader(reader, guard)
