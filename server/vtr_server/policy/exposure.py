"""Who can reach a listener, and what must not stand open to all of them."""

import ipaddress
from urllib.parse import urlsplit

from vtr_server.policy.settings import ServerSettings
from vtr_vllm.errors import ConfigurationError, Forbidden

__all__ = ["check_exposure", "is_loopback", "refuse_foreign_page"]


def is_loopback(host: str | None) -> bool:
    """Whether a listener on ``host`` is reached from this machine only; None is every address."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # another name: where it leads is not known here
        return False


def check_exposure(settings: ServerSettings, host: str | None) -> None:
    """Refuse a server on ``host`` that lets strangers work with it; raises ConfigurationError."""
    if settings.jobs is not None and not settings.keys and not is_loopback(host):
        raise ConfigurationError(
            "[jobs] lets everybody who reaches this server start searches and publish schedules:"
            " there are no [[keys]], and it listens beyond this machine; add a key with scope jobs,"
            " or give --host 127.0.0.1"
        )


def refuse_foreign_page(origin: str | None, host: str | None) -> None:
    """Refuse what a web page of elsewhere makes a browser on this machine send; raises Forbidden.

    For routes that need no key because only this machine reaches them. ``origin`` and ``host`` are
    the headers. A page that this server itself served has both alike, under a name of this machine:
    a foreign name that leads here (DNS rebinding) is none. With such a name a browser sends no Origin
    where its page only reads.
    """
    if origin is None and host is None:
        return  # no browser
    try:
        own, page = urlsplit(f"//{host or ''}"), urlsplit(origin or "")
    except ValueError:  # no address at all
        own = page = urlsplit("")
    is_foreign = origin is not None and page.netloc != own.netloc
    if is_foreign or not is_loopback(own.hostname):
        raise Forbidden(
            "this route needs no key here and is therefore not for pages from elsewhere, nor under"
            " another name than this machine's: use http://127.0.0.1 with this server's port, or add"
            " [[keys]]"
        )
