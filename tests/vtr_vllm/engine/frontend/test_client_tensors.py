"""A tensor file comes to no more than its bytes, whatever it says of itself."""

from __future__ import annotations

import base64
import pickle
import zipfile
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

import torch
from vllm.exceptions import VLLMValidationError
from vllm.renderers.embed_utils import safe_load_prompt_embeds

from vtr_vllm.engine.frontend import client_tensors
from vtr_vllm.engine.frontend.client_tensors import read_tensor
from vtr_vllm.errors import InvalidMedia

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def saved(value: object, **kw: Any) -> bytes:
    file = BytesIO()
    torch.save(value, file, **kw)
    return file.getvalue()


def packed_anew(file: bytes, /, compression: int = zipfile.ZIP_STORED, **changed: bytes) -> bytes:
    """The archive, compressed as said, entries that are named ``changed`` in the place of its own."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(file)) as given, zipfile.ZipFile(out, "w", compression) as made:
        for entry in given.infolist():
            name = entry.filename.rpartition("/")[2]
            made.writestr(entry.filename, changed.get(name.partition(".")[0], given.read(entry)))
    return out.getvalue()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_torch_saves_is_read(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(4, 6).to(dtype)
    for kept in (tensor, tensor.T, tensor[1:3, ::2], tensor[:0], tensor[0].expand(5, 6)):
        assert torch.equal(read_tensor(saved(kept)), kept)
        assert read_tensor(saved(kept)).dtype == dtype


def test_what_numpy_saves_is_read() -> None:
    file = BytesIO()
    np.save(file, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert torch.equal(read_tensor(file.getvalue()), torch.arange(6.0).reshape(2, 3))


def test_an_expanded_tensor_takes_no_more_than_was_sent() -> None:
    tensor = read_tensor(saved(torch.zeros(1, 64).expand(10**6, 64)))
    assert tensor.untyped_storage().nbytes() == 256


class _Filled:
    def __reduce__(self) -> Any:
        return bytearray, (2**40,)


BOMBS = {
    "compressed": packed_anew(saved(torch.zeros(1000, 1000)), zipfile.ZIP_DEFLATED),
    "bytearray": packed_anew(saved(torch.zeros(2)), data=pickle.dumps(_Filled(), 2)),
    "sparse": saved(torch.eye(3).to_sparse()),
    "a dict": saved({"a": torch.zeros(2)}),
    "a parameter": saved(torch.nn.Parameter(torch.zeros(2))),
    "the older format": saved(torch.zeros(2), _use_new_zipfile_serialization=False),
    "a short storage": packed_anew(saved(torch.zeros(2, 4)), **{"0": b"\0" * 8}),
    "another byte order": packed_anew(saved(torch.zeros(2)), byteorder=b"big"),
    "numpy that claims": np.lib.format.magic(1, 0)
    + b"\x76\0{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(120),
    "numpy of objects": np.lib.format.magic(1, 0)
    + b"\x76\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(120),
    "nothing": b"",
    "no file": b"PK\x03\x04 and so on",
    "no folder": packed_anew(saved(torch.zeros(2)))[:-40],
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidMedia, match="send one dense tensor"):
        read_tensor(data)


def test_code_in_a_file_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    class Speaks:
        def __reduce__(self) -> Any:
            return print, ("it ran",)

    with pytest.raises(InvalidMedia, match=r"holds __builtin__\.print"):
        read_tensor(packed_anew(saved(torch.zeros(2)), data=pickle.dumps(Speaks(), 2)))
    assert not capsys.readouterr().out


def test_a_tensor_that_leaves_its_storage_is_refused() -> None:
    file = saved(torch.arange(4.0))
    with zipfile.ZipFile(BytesIO(file)) as archive:
        text = archive.read("archive/data.pkl")
    # (storage, offset, size, stride): the size is the last of the two fours
    head, _, tail = text.rpartition(b"K\x04\x85")
    with pytest.raises(InvalidMedia):
        read_tensor(packed_anew(file, data=head + b"M\xe8\x03\x85" + tail))


def test_vllm_reads_prompt_embeddings_so_and_within_its_own_bounds() -> None:
    client_tensors.install()
    client_tensors.install()
    config: Any = SimpleNamespace(
        enable_prompt_embeds=True, get_hidden_size=lambda: 8, dtype=torch.float32
    )

    def load(data: bytes) -> torch.Tensor:
        return safe_load_prompt_embeds(config, base64.b64encode(data))

    assert load(saved(torch.ones(3, 8, dtype=torch.float16))).shape == (3, 8)
    for data in BOMBS.values():
        if not data.startswith(b"\x93NUMPY"):
            with pytest.raises(VLLMValidationError, match="send one dense tensor"):
                load(data)
    with pytest.raises(VLLMValidationError, match="VLLM_MAX_EMBED_DECODE_BYTES"):
        load(saved(torch.zeros(1, 8).expand(10**9, 8)))
    config.enable_prompt_embeds = False
    with pytest.raises(VLLMValidationError, match="enable-prompt-embeds"):
        load(saved(torch.ones(3, 8)))
