"""API keys. The server knows their SHA-256 only; a key is 256 random bits, so no salt is needed."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from vtr_server.policy.settings import KeySettings

__all__ = ["Keyring", "hash_key", "new_key"]

PREFIX = "vtr-"


def new_key() -> str:
    """A fresh key of 32 random bytes, in characters that need no quoting anywhere."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: bytes) -> str:
    """What settings hold of a key: its SHA-256 in hexadecimal."""
    return hashlib.sha256(key).hexdigest()


class Keyring:
    """All keys of a server."""

    def __init__(self, keys: Sequence[KeySettings]) -> None:
        self._known = [(bytes.fromhex(key.sha256), key) for key in keys]
        self.scopes = frozenset(scope for key in keys for scope in key.scopes)

    def __bool__(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._known)

    def find(self, authorization: bytes | None) -> KeySettings | None:
        """The key in an Authorization header; None if there is none, or no such key.

        All keys are compared, in constant time each, so that time tells nothing.
        """
        scheme, _, given = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = hashlib.sha256(given.strip()).digest()
        found = None
        for known, key in self._known:
            if hmac.compare_digest(known, digest):
                found = key
        return found
