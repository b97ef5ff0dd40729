"""Whether a file is another than before: looked at, not notified.

It may lie on a network mount or a Kubernetes volume, whose links change without an event.
"""

from pathlib import Path

__all__ = ["SECONDS", "Signature", "signature_of"]

SECONDS = 1.0
"""Between two looks."""

Signature = tuple[int, int, int]


def signature_of(file: Path) -> Signature | None:
    """What tells one state of a file from the next; None while it is not there."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
