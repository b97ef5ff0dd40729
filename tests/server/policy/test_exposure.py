"""Who reaches a listener, and what is not open to them."""

from __future__ import annotations

import pytest

from tests.server.gate.apps import key
from vtr_server.policy.exposure import check_exposure, is_loopback, refuse_foreign_page
from vtr_server.policy.settings import JobsSettings, ServerSettings
from vtr_vllm.errors import ConfigurationError, Forbidden

LOCAL = ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"]
BEYOND = [None, "", "0.0.0.0", "::", "192.0.2.1", "example.org", "localhost.example.org"]


@pytest.mark.parametrize("host", LOCAL)
def test_a_loopback_address_is_this_machine(host: str) -> None:
    assert is_loopback(host)
    check_exposure(ServerSettings(jobs=JobsSettings(memory_share=0.3)), host)


@pytest.mark.parametrize("host", BEYOND)
def test_jobs_without_keys_stay_on_this_machine(host: str | None) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigurationError, match="add a key with scope jobs"):
        check_exposure(ServerSettings(jobs=JobsSettings(memory_share=0.3)), host)
    check_exposure(ServerSettings(), host)
    check_exposure(
        ServerSettings(jobs=JobsSettings(memory_share=0.3), keys=(key("a", "secret"),)), host
    )


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, None),
        (None, "127.0.0.1:8000"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://localhost:8000", "localhost:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_the_servers_own_page_may(origin: str | None, host: str | None) -> None:
    refuse_foreign_page(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "127.0.0.1:8000"),
        ("http://127.0.0.1:9000", "127.0.0.1:8000"),  # another server of this machine
        ("http://evil.example:8000", "evil.example:8000"),  # a name that was made to lead here
        (None, "evil.example:8000"),  # the same, where the page only reads
        (None, "[::1"),
        ("http://[::1", "127.0.0.1:8000"),
        ("null", "127.0.0.1:8000"),
        ("", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000", None),
    ],
)
def test_a_page_from_elsewhere_may_not(origin: str | None, host: str | None) -> None:
    with pytest.raises(Forbidden, match="not for pages from elsewhere"):
        refuse_foreign_page(origin, host)
