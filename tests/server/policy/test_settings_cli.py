"""``vtr settings check``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.contract.source import ROOT
from vtr_server.policy.settings import ServerSettings
from vtr_server.policy.settings_cli import as_toml, main
from vtr_vllm.own_models import CHECKPOINT, DEMO_SCHEDULES

EXAMPLE = ROOT / "deploy/settings.example.toml"


def read_back(settings: ServerSettings) -> ServerSettings:
    """From what is printed; the hashes, which are not, are put back."""
    found: dict[str, Any] = tomllib.loads(as_toml(settings))
    for told, key in zip(found.get("keys", []), settings.keys, strict=True):
        assert "sha256" not in told
        told["sha256"] = key.sha256
    return ServerSettings.model_validate(found)


@pytest.mark.parametrize(
    "settings", [ServerSettings(), ServerSettings.load(EXAMPLE)], ids=["defaults", "everything"]
)
def test_what_is_printed_is_what_holds(settings: ServerSettings) -> None:
    assert read_back(settings) == settings
    assert not [key.sha256 for key in settings.keys if key.sha256 in as_toml(settings)]


def test_what_the_file_leaves_out_is_marked(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[limits]\nimages = 3\n")
    lines = as_toml(ServerSettings.load(file)).splitlines()
    assert "limits.images = 3" in lines
    assert "limits.in_flight = 512  # default" in lines
    assert "tiers.balanced = 0.5  # default" in lines
    assert "# elastic: off" in lines
    assert "# budget.minimum: none" in lines


def test_a_good_file_ends_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--schedules", str(DEMO_SCHEDULES), "--model", str(CHECKPOINT)]
    assert main(["check", str(EXAMPLE), *model]) == 0
    assert tomllib.loads(capsys.readouterr().out)["elastic"]["ttft_seconds"] == 2.0


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("[tiers]\nauto = 0.5\n", [], "auto is no name for a tier"),
        ("", ["--schedules", "nowhere"], "nowhere is no folder"),
        ("", ["--model", "./nowhere"], "model folder ./nowhere is not there"),
    ],
)
def test_a_bad_one_with_status_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, more: list[str], said: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["check", str(file), *more])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert told.err.count("\n") == 1
