"""The page at ``/``: static files, what the page must know of this server, sample images."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from vtr_server.policy.settings import ServerSettings
from vtr_vllm.demo import CHECKPOINT, sample

__all__ = ["PageData", "page_data", "router"]

_FOLDER = Path(__file__).parent
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' blob:;"
        " object-src 'none'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for by its ETag each time
}
_READ = ["GET", "HEAD"]

SAMPLES = (("test", 0), ("test", 3), ("test", 2))
"""Split and index of each sample image: a colour, a thing of a colour, and two hops."""


@dataclass(frozen=True)
class PageData:
    """What no other route tells the page; on ``app.state.page``."""

    demo: bool
    """Whether the packaged demo model is served, whose world the samples come from."""
    images: int
    image_pixels: int
    """Of one image; the page scales larger ones down."""
    frame: Literal["whole", "centre", "unknown"]
    """Which part of an image the model sees: all of it, a square from its middle, or who knows."""
    share: float
    """With ``centre``: side of that square over the shorter side of the image."""
    jobs: bool


def page_data(model: str, image_processor: Mapping[str, Any], settings: ServerSettings) -> PageData:
    """The facts for a served model.

    model: path or name, as ``vllm serve`` was given it. image_processor: the model's Hugging Face
    image processor configuration; empty where there is none.
    """
    frame, share = _frame(image_processor)
    limits = settings.limits
    jobs = settings.jobs is not None
    demo = Path(model).resolve() == CHECKPOINT.resolve()
    return PageData(demo, limits.images, limits.image_pixels, frame, share, jobs)


def _frame(processor: Mapping[str, Any]) -> tuple[Literal["whole", "centre", "unknown"], float]:
    """What a processor of the Hugging Face form leaves of an image."""
    if not processor.get("do_center_crop"):
        kind = str(processor.get("image_processor_type"))
        resized = processor.get("do_resize", kind.startswith("Qwen2VLImageProcessor"))
        stretched = bool(resized) and not processor.get("do_pad")
        return ("whole" if stretched else "unknown"), 1.0
    crop, shorter = processor.get("crop_size"), _side(processor.get("size"), "shortest_edge")
    width, height = _side(crop, "width"), _side(crop, "height")
    if shorter is None or width is None or width != height or width > shorter:
        return "unknown", 1.0
    return "centre", width / shorter


def _side(size: Any, name: str) -> int | None:
    """A named side of a size that is an object, or a plain number."""
    side = size.get(name) if isinstance(size, Mapping) else size
    return side if isinstance(side, int) and side > 0 else None


@dataclass(frozen=True)
class _File:
    body: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> "_File":
        return cls(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        headers = _HEADERS | {"ETag": self.etag}
        known = [tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")]
        if self.etag in known or f"W/{self.etag}" in known or known == ["*"]:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        body = b"" if request.method == "HEAD" else self.body
        headers["Content-Length"] = str(len(self.body))
        return Response(body, media_type=self.media_type, headers=headers)


@cache
def _files() -> dict[str, _File]:
    """Every static file by name; read once, since they do not change under a running server."""
    paths = (path for path in _FOLDER.iterdir() if path.suffix in _TYPES)
    return {path.name: _File.of(path.read_bytes(), _TYPES[path.suffix]) for path in paths}


@cache
def _sample_file(number: int) -> _File:
    image = io.BytesIO()
    sample(*SAMPLES[number]).image.save(image, "PNG", optimize=True)
    return _File.of(image.getvalue(), "image/png")


router = APIRouter(include_in_schema=False)


def _facts(request: Request) -> PageData:
    facts: PageData = request.app.state.page
    return facts


@router.api_route("/", methods=_READ)
async def index(request: Request) -> Response:
    """The page itself."""
    return _files()[_INDEX].answer(request)


@router.api_route("/page/config.json", methods=_READ)
async def config(request: Request) -> Response:
    """Limits, and how the model frames an image."""
    facts = _facts(request)
    body = {
        "images": facts.images,
        "image_pixels": facts.image_pixels,
        "frame": facts.frame,
        "share": facts.share,
        "jobs": facts.jobs,
    }
    return JSONResponse(body, headers=_HEADERS)


@router.api_route("/page/samples.json", methods=_READ)
def samples(request: Request) -> Response:
    """Sample images with a question each; none but for the demo model, which knows that world."""
    found = []
    if _facts(request).demo:
        for number, (split, index) in enumerate(SAMPLES):
            question = sample(split, index).question
            found.append({"image": f"page/samples/{number}.png", "question": question})
    return JSONResponse({"data": found}, headers=_HEADERS)


@router.api_route("/page/samples/{name}", methods=_READ)
def sample_image(name: str, request: Request) -> Response:
    """One sample as a PNG; 404 where the demo model is not served."""
    names = [f"{number}.png" for number in range(len(SAMPLES))]
    if not _facts(request).demo or name not in names:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no sample image {json.dumps(name)}")
    return _sample_file(names.index(name)).answer(request)


@router.api_route("/page/{name}", methods=_READ)
async def static_file(name: str, request: Request) -> Response:
    """A script, the style or the icon."""
    found = _files().get(name)
    if found is None or name == _INDEX:  # its links are those of the root
        raise HTTPException(HTTPStatus.NOT_FOUND, f"the page has no file {json.dumps(name)}")
    return found.answer(request)
