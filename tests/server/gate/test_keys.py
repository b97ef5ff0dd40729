"""Keys are found by their hash alone."""

from __future__ import annotations

import pytest

from tests.server.gate.apps import key
from vtr_server.gate.keys import Keyring, hash_key, new_key

ONE, TWO = new_key(), new_key()
RING = Keyring([key("one", ONE), key("two", TWO, scopes=("metrics", "admin"))])


def test_a_new_key_is_long_and_its_own() -> None:
    assert ONE != TWO
    assert ONE.startswith("vtr-")
    assert len(ONE) >= len("vtr-") + 43, "32 bytes in base64"


def test_a_key_is_found() -> None:
    for header in (f"Bearer {TWO}", f"bearer {TWO}", f"Bearer  {TWO} "):
        found = RING.find(header.encode())
        assert found is not None
        assert found.name == "two"
    assert RING.scopes == {"generate", "metrics", "admin"}


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", ONE, f"Basic {ONE}", f"Bearer {ONE}x", f"Bearer {ONE[:-1]}"],
    ids=["none", "empty", "scheme", "no-key", "no-scheme", "basic", "longer", "shorter"],
)
def test_nothing_else_is_a_key(header: str | None) -> None:
    assert RING.find(header.encode() if header is not None else None) is None


def test_the_hash_is_no_key() -> None:
    assert RING.find(f"Bearer {hash_key(ONE.encode())}".encode()) is None


def test_bytes_that_are_no_text_are_no_key() -> None:
    assert RING.find(b"Bearer \xff\x00") is None


def test_without_keys_none_is_needed() -> None:
    assert not Keyring([])
    assert RING
