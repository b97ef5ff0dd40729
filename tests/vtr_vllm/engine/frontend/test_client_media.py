"""A client's word names nothing in vLLM's caches, seen at vLLM's own renderer: no engine is needed."""

from __future__ import annotations

import asyncio
import base64
from io import BytesIO
from typing import Any

import pytest

pytest.importorskip("vllm")

from PIL import Image
from vllm.entrypoints.scale_out.token_in_token_out import serving as tokens_in

from tests.renderers import image_keys, tiny_renderer
from vtr_vllm.engine.frontend import client_media
from vtr_vllm.errors import InvalidMedia, UnsupportedRequest

WHOSE = ["ann"]
PROCESSED: list[list[object]] = []


@pytest.fixture(scope="module")
def renderer() -> Any:
    client_media.install(lambda: WHOSE[0], lambda media: PROCESSED.append(list(media)))
    client_media.install(lambda: WHOSE[0], lambda media: PROCESSED.append(list(media)))
    made = tiny_renderer()
    yield made
    made.shutdown()


def url(colour: str) -> str:
    file = BytesIO()
    Image.new("RGB", (56, 56), colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def part(colour: str | None, uuid: str | None = None) -> dict[str, Any]:
    image = {"url": url(colour)} if colour else None
    named = {} if uuid is None else {"uuid": uuid}
    return {"type": "image_url", "image_url": image} | named


def keys(renderer: Any, whose: str, *parts: dict[str, Any]) -> list[str]:
    """Under which keys the images of one request of ``whose`` go to the caches."""
    WHOSE[0] = whose
    return asyncio.run(image_keys(renderer, *parts))


def test_one_uuid_with_two_pictures_is_two_keys(renderer: Any) -> None:
    first, second = (keys(renderer, "ann", part(c, "scan-1")) for c in ("red", "blue"))
    assert first != second
    assert keys(renderer, "ann", part("red", "scan-1")) == first  # what a uuid is good for


def test_two_clients_share_no_uuid(renderer: Any) -> None:
    assert keys(renderer, "ann", part("red", "x")) != keys(renderer, "ben", part("red", "x"))


def test_no_client_can_write_the_name_of_another(renderer: Any) -> None:
    assert keys(renderer, "ann", part("red", "b\nx")) != keys(renderer, "ann\nb", part("red", "x"))


def test_a_uuid_sets_a_picture_apart_from_itself_without_one(renderer: Any) -> None:
    """The page measures by it: no cache knows the picture."""
    plain = keys(renderer, "ann", part("red"))
    assert plain == keys(renderer, "ben", part("red"))
    assert len({*plain, *keys(renderer, "ann", part("red", "x"), part("red", "y"))}) == 3


def test_a_key_of_vllms_own_is_nobodys_to_give(renderer: Any) -> None:
    """Neither the hash of another's picture nor that of another's uuid leads to it."""
    plain = keys(renderer, "ann", part("red"))
    named = keys(renderer, "ann", part("red", "x"))
    for known in (*plain, *named):
        assert keys(renderer, "ben", part("blue", known))[0] not in (*plain, *named)


@pytest.mark.parametrize("whose", ["ann", "ben"])
def test_a_uuid_without_a_picture_is_refused(renderer: Any, whose: str) -> None:
    keys(renderer, "ann", part("red", "mine"))
    with pytest.raises(InvalidMedia, match="send the image itself"):
        keys(renderer, whose, part(None, "mine"))
    with pytest.raises(InvalidMedia):
        keys(renderer, whose, part("red"), part(None, "mine"))


@pytest.mark.parametrize(
    "given", ["/etc/hosts", "http://127.0.0.1:1/x.png", [[[1, 2, 3]]], [], 5, True, {"a": "b"}]
)
def test_what_no_reader_made_goes_to_no_processor(renderer: Any, given: object) -> None:
    """Transformers opens a string as a path or an address."""
    for more in ({"type": "image_pil"}, {"uuid": "x"}):
        with pytest.raises(InvalidMedia, match="where an image should be"):
            keys(renderer, "ann", {"image_pil": given, **more})


def test_it_is_told_when_media_are_done_with(renderer: Any) -> None:
    PROCESSED.clear()
    keys(renderer, "ann", part("red"), part("blue", "x"))
    assert [len(media) for media in PROCESSED] == [2]
    with pytest.raises(InvalidMedia):
        keys(renderer, "ann", part("red"), part(None, "x"))
    assert len(PROCESSED[1]) == 2


def test_processed_images_of_a_client_are_refused(renderer: Any) -> None:
    with pytest.raises(UnsupportedRequest, match="content_parts"):
        tokens_in.mm_kwargs_from_features(None)
