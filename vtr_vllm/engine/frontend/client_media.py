"""A client's media, looked at before vLLM's processor and caches take its word for anything.

Two things are safe for a caller in Python and not for a client of a server. A ``uuid`` beside a medium
is, for vLLM, the key of its caches (processed items, encoder outputs, the prefix cache), whatever the
medium; and a part of type ``image_pil`` goes to the processor as it is, which opens a string as a path
or an address. So here a key is made of whose request it is, its uuid and the medium itself; a uuid
without a medium is refused, and so is a medium that no reader of vLLM's has made.

What came of it before: github.com/vllm-project/vllm/issues/55547.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from vllm.entrypoints.scale_out.token_in_token_out import serving as tokens_in
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media import MediaWithBytes
from vllm.renderers.base import BaseRenderer

from vtr_vllm.errors import InvalidMedia, UnsupportedRequest

__all__ = ["install"]

_LOADED = (MediaWithBytes, Image.Image, np.ndarray, torch.Tensor)
"""What vLLM's readers make of a medium. Nothing that JSON can hold is among them."""


@dataclass
class _Server:
    """What the server told ``install``."""

    whose: Callable[[], str]
    processed: Callable[[Iterable[object]], None]


_server = _Server(lambda: "", lambda _: None)


def install(whose: Callable[[], str], processed: Callable[[Iterable[object]], None]) -> None:
    """Look at all media of this process from now on; called again, it takes the new callables.

    ``whose`` names the client whose request the current context serves: two names share no uuid.
    ``processed`` gets the media of a prompt when the processor is done with them, or has failed.
    """
    _server.whose, _server.processed = whose, processed
    stock = BaseRenderer._process_tokens_async
    if getattr(stock, "vtr_client_media", False):
        return

    @functools.wraps(stock)
    async def _process_tokens_async(self: BaseRenderer, prompt: Any, **kw: Any) -> Any:
        data = prompt.get("multi_modal_data") or {}
        media = [item for items in data.values() for item in _items(items)]
        try:
            return await stock(self, _checked(prompt, media), **kw)
        finally:
            _server.processed(media)

    _process_tokens_async.vtr_client_media = True
    BaseRenderer._process_tokens_async = _process_tokens_async
    BaseRenderer._process_mm_uuids = _with_content(BaseRenderer._process_mm_uuids)
    tokens_in.mm_kwargs_from_features = _refuse_features


def _items(items: Any) -> Sequence[object]:
    """The media of one kind: vLLM has them in a list, or embeddings of all in one object."""
    return items if isinstance(items, list) else [items]


def _checked(prompt: Any, media: Sequence[object]) -> Any:
    """The prompt, with uuids that no other client can name. Raises InvalidMedia."""
    for item in media:
        if item is None:
            raise InvalidMedia(
                "a part has a uuid and no image; this server keeps no images by name: send the image"
                " itself, with or without the uuid"
            )
        if not _is_loaded(item):
            raise InvalidMedia(
                f"a part holds a {type(item).__name__} where an image should be; send it as"
                ' {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
            )
    uuids = prompt.get("multi_modal_uuids")
    if not uuids:
        return prompt
    whose = _server.whose()
    named = {
        kind: [uuid if uuid is None else json.dumps([whose, uuid]) for uuid in _items(given)]
        for kind, given in uuids.items()
    }
    return {**prompt, "multi_modal_uuids": named}


def _is_loaded(item: object) -> bool:
    """Whether a reader made it: one object, (samples, rate), (frames, facts), embeddings by name."""
    if isinstance(item, dict):
        return any(map(_is_loaded, item.values()))
    if isinstance(item, list | tuple):
        return bool(item) and _is_loaded(item[0])
    return isinstance(item, _LOADED)


def _with_content(stock: Any) -> Any:
    """``_process_mm_uuids`` that makes keys of uuids; in the thread that processes the media."""

    @functools.wraps(stock)
    def _process_mm_uuids(
        self: BaseRenderer, mm_data: Any, mm_data_items: Any, mm_uuid_items: Any, mm_req_id: str
    ) -> Any:
        keys = {
            kind: _keys(self.model_config, kind, mm_data_items.get(kind), uuids)
            for kind, uuids in mm_uuid_items.items()
        }
        return stock(self, mm_data, mm_data_items, keys, mm_req_id)

    return _process_mm_uuids


def _keys(model_config: Any, kind: str, media: Any, uuids: Sequence[str | None]) -> Any:
    if media is None or len(media) != len(uuids) or not any(uuids):
        return uuids  # vLLM says what is wrong with it, if anything is
    algorithm = model_config.multimodal_config.mm_hasher_algorithm
    return [
        uuid if uuid is None else MultiModalHasher.hash_kwargs(algorithm, uuid=uuid, **{kind: item})
        for uuid, item in zip(uuids, media.get_all_items_for_hash(), strict=True)
    ]


def _refuse_features(_: object) -> NoReturn:
    """In the place of what reads ``features``: tensors of any shape, under keys of any name."""
    raise UnsupportedRequest(
        "features holds processed images and the names that they are cached under, as the client"
        " says; this server takes neither: send the images themselves as content_parts"
    )
