"""Tensors that clients send, where vLLM takes any: never more bytes than were sent.

``--enable-mm-embeds`` and ``--enable-prompt-embeds`` let clients send files of ``torch.save``, or of
``numpy.save`` for images. ``torch.load(weights_only=True)`` runs none of their code, but allocates what
they say: it inflates compressed entries a thousandfold, and takes ``bytearray(n)`` for any n. So plain
dense tensors are read here instead; whatever else a file holds is refused. What a tensor comes to when
it is laid out in full is vLLM's to bound (VLLM_MAX_EMBED_DECODE_BYTES).
"""

import pickle
import zipfile
from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from vllm.renderers import embed_utils

from vtr_vllm.errors import InvalidMedia

__all__ = ["install", "read_tensor"]

_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_DIMENSIONS = 8


def read_tensor(data: bytes) -> torch.Tensor:
    """The one dense tensor in a file of ``torch.save`` or ``numpy.save``; raises InvalidMedia.

    Its storage is no larger than ``data``; its strides may be 0.
    """
    try:
        tensor = _read_npy(data) if data.startswith(npy.MAGIC_PREFIX) else _read_archive(data)
    except InvalidMedia:
        raise
    except Exception as err:  # of what is neither, zipfile and pickle raise nearly anything
        raise _refusal(f"it does not load: {type(err).__name__}: {str(err)[:200]}") from err
    return tensor


def install() -> None:
    """Read prompt embeddings in this way in this process; safe to call again."""
    if not isinstance(embed_utils.torch, _ReadingTorch):
        embed_utils.torch = _ReadingTorch("torch")


class _ReadingTorch(ModuleType):
    """``torch`` whose ``load`` is ``read_tensor``: for the module of vLLM's that loads a prompt's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(file: BytesIO, **_: Any) -> torch.Tensor:
        """As ``read_tensor``, on the CPU."""
        return read_tensor(file.getvalue())


class _Unpickler(pickle.Unpickler):
    """Knows what ``torch.save`` writes of a dense tensor, and no other name."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(BytesIO(archive.read(f"{folder}data.pkl")))
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _strided
        if (module, name) == ("collections", "OrderedDict"):
            return dict  # of hooks: always empty
        raise _refusal(f"it holds {module}.{name}, and a dense tensor does not")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """A storage, as a tensor of one dimension."""
        _, dtype, key, _, count = pid
        data = self._archive.read(f"{self._folder}data/{key}")
        if len(data) != count * dtype.itemsize:
            raise _refusal(f"a storage of {count} elements has {len(data)} bytes")
        return (
            torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        )


def _read_archive(data: bytes) -> torch.Tensor:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _refusal("it is compressed, and torch.save compresses nothing")
        if sum(entry.file_size for entry in entries) > len(data):
            raise _refusal(f"it has {len(data)} bytes and claims to hold more")
        [folder] = {entry.filename[: -len("data.pkl")] for entry in entries if _is_pickle(entry)}
        if f"{folder}byteorder" in archive.namelist():
            order = archive.read(f"{folder}byteorder")
            if order != b"little":
                raise _refusal(f"its byte order is {order[:20]!r}, and only little is read")
        tensor = _Unpickler(archive, folder).load()
    if not isinstance(tensor, torch.Tensor):
        raise _refusal(f"it holds a {type(tensor).__name__}")
    return tensor


def _is_pickle(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.rpartition("/")[2] == "data.pkl"


def _strided(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """``_rebuild_tensor_v2``; torch itself checks that it stays within the storage."""
    if len(size) > _DIMENSIONS:
        raise _refusal(f"it has {len(size)} dimensions")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _read_npy(data: bytes) -> torch.Tensor:
    file = BytesIO(data)
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject or np.prod(shape, dtype=object) * dtype.itemsize > len(data):
        raise _refusal(f"it has {len(data)} bytes and claims to be {dtype} of shape {shape}")
    file.seek(0)
    return torch.from_numpy(np.load(file, allow_pickle=False))


def _refusal(why: str) -> InvalidMedia:
    return InvalidMedia(
        f"the tensor file cannot be taken ({why}); send one dense tensor as torch.save writes it"
    )
