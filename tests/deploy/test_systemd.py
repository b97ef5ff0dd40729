"""The systemd unit: understood by systemd, closed off, and with time to drain."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, run, tool
from vtr_server.policy.settings import ServerSettings

FOLDER = DEPLOY / "systemd"
EXPOSURE = 25
"""In tenths, as --threshold counts; 100 is a service without any protection."""


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here: systemd looks for it."""
    file = tmp_path / "vtr.service"
    file.write_text((FOLDER / "vtr.service").read_text().replace("/opt/vtr/bin/vtr", "/bin/true"))
    return file


def service() -> dict[str, str]:
    """The last value of each key of [Service]."""
    parsed = configparser.RawConfigParser(strict=False, delimiters="=")
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read(FOLDER / "vtr.service")
    return dict(parsed["Service"])


def environment() -> dict[str, str]:
    text = (FOLDER / "vtr.env").read_text()
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def test_systemd_understands_it(unit: Path) -> None:
    assert run(tool("systemd-analyze"), "verify", unit) == ""


def test_it_is_closed_off(unit: Path) -> None:
    limits = ("--offline=yes", f"--threshold={EXPOSURE}")
    run(tool("systemd-analyze"), "security", *limits, unit)


def test_the_command_has_what_it_names() -> None:
    command = service()["ExecStart"]
    assert shlex.split(command)[:2] == ["/opt/vtr/bin/vtr", "serve"]
    assert set(re.findall(r"\$\{?(\w+)", command)) <= set(environment())
    words = shlex.split(command)
    settings = Path(words[words.index("--settings") + 1])
    assert settings.name == "settings.toml"
    assert settings.parent == Path(service()["EnvironmentFile"]).parent
    assert "LoadCredential" not in service(), "a copy made at the start never changes"


def test_the_settings_load() -> None:
    settings = ServerSettings.load(FOLDER / "settings.toml")
    assert settings.admin is not None
    assert settings.admin.host == "127.0.0.1"


def test_stopping_leaves_time_to_drain() -> None:
    words = shlex.split(service()["ExecStart"])
    drain = int(words[words.index("--shutdown-timeout") + 1])
    assert int(service()["TimeoutStopSec"].removesuffix("s")) >= drain + 10
    assert service()["KillMode"] == "mixed", "the engine must outlive the requests"
