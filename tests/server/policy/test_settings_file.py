"""A settings file that changes while a server runs."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from tests.running import wait_until
from tests.server.bad_input import CHAT, chat_body
from tests.server.conftest import NAME, SETTINGS, Server
from tests.server.gate.apps import key
from vtr_server.policy.settings import ServerSettings, check_reuse
from vtr_server.policy.settings_file import FIXED, SettingsFile
from vtr_vllm.errors import InvalidBudget

KEY = '[[keys]]\nname = "{}"\nsha256 = "{}"\n'
A, B = KEY.format("a", key("a", "one").sha256), KEY.format("b", key("b", "two").sha256)


class Watched:
    """A file, and every settings that it led to."""

    refused: Exception | None = None

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.adopted: list[ServerSettings] = []
        path.write_text(text)
        check = partial(check_reuse, caches_prefixes=False)
        self.file = SettingsFile(path, ServerSettings.load(path), self._adopt, check)

    async def _adopt(self, settings: ServerSettings) -> None:
        if self.refused is not None:
            raise self.refused
        self.adopted.append(settings)

    def write(self, text: str) -> list[str]:
        """What was rejected once the new text has been looked at twice."""
        before = self.path.stat().st_mtime_ns if self.path.exists() else 0
        self.path.write_text(text)
        status = self.path.stat()
        # A file system's clock may tick rarely: what is written comes later than what was there.
        os.utime(self.path, ns=(status.st_atime_ns, max(status.st_mtime_ns, before + 1)))
        return self.look()

    def look(self, times: int = 2) -> list[str]:
        async def looks() -> list[str]:
            return [said for _ in range(times) for said in await self.file.reload_if_changed()]

        return asyncio.run(looks())

    @property
    def names(self) -> list[str]:
        return [key.name for key in self.file.settings.keys]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "settings.toml", A)


def reloads(outcome: str) -> float:
    return REGISTRY.get_sample_value("vtr_settings_reloads_total", {"outcome": outcome}) or 0.0


def test_keys_and_policy_follow_the_file(watched: Watched) -> None:
    before = reloads("ok")
    assert watched.look() == []
    assert watched.adopted == [], "nothing changed, nothing read"
    assert watched.write("[budget]\nminimum = 0.5\n[limits]\nimages = 3\n" + A + B) == []
    assert watched.names == ["a", "b"]
    assert watched.file.settings.budget.minimum == 0.5
    assert watched.file.settings.limits.images == 3
    assert watched.write(B) == []
    assert watched.names == ["b"], "a is revoked"
    assert [len(settings.keys) for settings in watched.adopted] == [2, 1]
    assert reloads("ok") == before + 2


def test_half_a_file_is_not_taken_for_the_whole(watched: Watched) -> None:
    watched.path.write_text("")  # as an editor leaves it for a moment: valid, and without keys
    assert watched.look(1) == []
    assert watched.write(A + B) == []
    assert watched.names == ["a", "b"]
    assert len(watched.adopted) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[budget\n", "is no TOML"),
        ("[budgit]\n" + A, "budgit"),
        ("[budget]\nminimum = 2\n" + A, "budget.minimum"),
        ("", "would open a server that had some"),
        ("[budget]\nreuse = true\n" + A, "runs without prefix caching"),
        ('[budget]\ndefault = "auto"\n[elastic]\nttft_seconds = 1\n' + A, "only a restart brings"),
    ],
)
def test_a_bad_file_replaces_nothing(watched: Watched, text: str, said: str) -> None:
    before, held = reloads("rejected"), watched.file.settings
    [reason] = watched.write(text)
    assert said in reason
    assert watched.file.settings is held
    assert watched.adopted == []
    assert watched.look() == [], "said once"
    assert reloads("rejected") == before + 1
    assert watched.write(A + B) == []
    assert watched.names == ["a", "b"]


def test_what_cannot_be_adopted_replaces_nothing(watched: Watched) -> None:
    before = reloads("rejected")
    watched.refused = InvalidBudget("a tier that no request could ask for")
    assert watched.write(A + B) == ["a tier that no request could ask for"]
    assert watched.names == ["a"]
    assert reloads("rejected") == before + 1
    assert watched.look() == [], "said once"


def test_what_fails_unforeseen_is_read_once_more(watched: Watched) -> None:
    watched.refused = OSError("no descriptors")
    with pytest.raises(OSError, match="no descriptors"):
        watched.write(A + B)
    assert watched.names == ["a"]
    watched.refused = None
    watched.look()
    assert watched.names == ["a", "b"]


def test_a_file_that_vanishes_takes_nothing_with_it(watched: Watched) -> None:
    watched.path.unlink()
    [reason] = watched.look()
    assert "cannot be read" in reason
    assert watched.names == ["a"]
    assert watched.write(B) == []
    assert watched.names == ["b"]


CHANGES = {
    "elastic": "[elastic]\nttft_seconds = 1.0\n",
    "media": '[media]\ndomains = ["example.org"]\n',
    "admin": "[admin]\n",
    "page": "[page]\nenabled = false\n",
    "jobs": "[jobs]\nmemory_share = 0.3\n",
    "limits.image_pixels": "[limits]\nimage_pixels = 1\nimages = 2\n",
    "limits.video_frames": "[limits]\nvideo_frames = 1\nimages = 2\n",
    "limits.decoded_pixels": "[limits]\ndecoded_pixels = 99999999\nimages = 2\n",
}


@pytest.mark.parametrize("name", FIXED)
def test_what_needs_a_restart_is_named_and_waits(watched: Watched, name: str) -> None:
    before, held = reloads("partial"), watched.file.settings
    [reason] = watched.write(CHANGES[name] + A + B)
    table, _, field = name.partition(".")
    assert reason.startswith(f"[{table}] {field}" if field else f"[{table}] changed")
    assert "restart" in reason
    assert watched.names == ["a", "b"], "the rest is taken"
    assert getattr(watched.file.settings, table) == (
        held.limits.model_copy(update={"images": 2}) if field else getattr(held, table)
    )
    assert reloads("partial") == before + 1


def test_every_table_either_follows_or_waits() -> None:
    follows = {"adaptive", "budget", "tiers", "detail", "limits", "keys"}
    waits = {name for name in FIXED if "." not in name}
    assert follows | waits == set(ServerSettings.model_fields)
    assert not follows & waits


def test_links_are_followed_when_they_are_turned(tmp_path: Path) -> None:
    """As Kubernetes updates a mounted Secret: the same name, another folder behind it."""
    for version, text in (("1", A), ("2", A + B)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "settings.toml").write_text(text)
    (tmp_path / "data").symlink_to("1")
    path = tmp_path / "settings.toml"
    path.symlink_to("data/settings.toml")
    watched = Watched.__new__(Watched)
    watched.adopted = []
    watched.file = SettingsFile(path, ServerSettings.load(path), watched._adopt)
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(tmp_path / "data")
    assert watched.look() == []
    assert watched.names == ["a", "b"]


def test_without_a_file_there_is_nothing_to_read() -> None:
    async def none(settings: ServerSettings) -> None:
        raise AssertionError(settings)

    file = SettingsFile(None, ServerSettings(), none)
    assert asyncio.run(file.reload()) == []
    asyncio.run(file.watch())


@pytest.mark.engine
def test_a_running_server_follows_its_settings(server: Server) -> None:
    """A tier comes and goes; what a broken file says does not count. Keys: tests/server/gate."""
    path = server.log.with_name("settings.toml")
    body = chat_body(NAME, vtr={"tier": "brief"})
    with server.client() as client:

        def status() -> int:
            return client.post(CHAT, json=body).status_code

        try:
            assert status() == 400
            path.write_text(SETTINGS.replace("[tiers]", "[tiers]\nbrief = 0.3"))
            wait_until(lambda: status() == 200)
            assert "brief" in client.get("/v1/schedules").json()["tiers"]
            path.write_text("[tiers")
            wait_until(lambda: "VTR keeps the settings that it had" in server.log.read_text())
            assert status() == 200
        finally:
            path.write_text(SETTINGS)
            wait_until(lambda: status() == 400)
