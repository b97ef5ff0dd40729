"""What tells one model's weights from another's that has the same name."""

from __future__ import annotations

import hashlib
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


def checkpoint_digest(model: str, revision: str | None = None) -> str | None:
    """Hex digits that change with the checkpoint ``model``.

    Of a folder, or a file: names, sizes and parts of its weights, configuration, tokenizer and templates. Of a name on the hub:
    the commit that lies in the cache. None where neither is there.
    """
    path = Path(model)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _READ and file.is_file())
    elif path.is_file():
        files = [path]
    else:
        return _commit(model, revision)
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


def _commit(model: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent.name if isinstance(found, str) else None
