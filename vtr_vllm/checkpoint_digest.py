"""What tells one model's weights from another's that has the same name."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_READ = frozenset(
    {
        *(".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json"),
        *(".jinja", ".txt", ".model"),  # chat templates and tokenizers, which make the prompts
    }
)
_PART = 64 << 10
_PARTS = 256
"""Bytes of a part, and most parts of a file that are read: of a small file all, of a shard of many
gigabytes one part in every few megabytes, so that it takes no longer than a moment."""


_SNAPSHOTS, _COMMIT = "snapshots", re.compile("[0-9a-f]{40}")
"""Where the hub's cache has a commit's files, in a folder of its name."""


def checkpoint_digest(
    model: str, revision: str | None = None, cache: str | None = None
) -> str | None:
    """Hex digits that change with the checkpoint ``model``.

    Of a folder, or a file: names, sizes and parts of its weights, configuration, tokenizer and templates. Of a
    name on the hub: the commit that lies in ``cache``, or the usual one; and so of the folder where it lies
    there, which vLLM names instead where it is offline. None where nothing is there.
    """
    path = Path(model)
    if path.parent.name == _SNAPSHOTS and _COMMIT.fullmatch(path.name):
        return path.name
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _READ and file.is_file())
    elif path.is_file():
        files = [path]
    else:
        return _commit(model, revision, cache)
    digest = hashlib.sha256()
    for file in files:
        _add(digest, file)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size}\n".encode())
    apart = max(_PART, -(-size // _PARTS))
    with path.open("rb") as file:
        for start in range(0, size, apart):
            file.seek(start)
            digest.update(file.read(_PART))


def _commit(model: str, revision: str | None, cache: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", cache, revision)
    except HFValidationError:
        return None
    return Path(found).parent.name if isinstance(found, str) else None
