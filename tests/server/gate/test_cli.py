"""``vtr keys new``: what it prints works as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtr_server.gate.cli import main
from vtr_server.gate.keys import Keyring
from vtr_server.policy.settings import ServerSettings


@pytest.mark.parametrize(
    ("flags", "scopes"),
    [
        ([], ("generate",)),
        (["--scope", "metrics", "--scope", "admin", "--scope", "admin"], ("metrics", "admin")),
    ],
)
def test_the_printed_table_lets_the_printed_key_in(
    flags: list[str],
    scopes: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["new", "team-a", *flags]) == 0
    secret, _, table = capsys.readouterr().out.partition("\n")
    file = tmp_path / "settings.toml"
    file.write_text(table)
    assert secret not in table
    found = Keyring(ServerSettings.load(file).keys).find(f"Bearer {secret}".encode())
    assert found is not None
    assert (found.name, found.scopes) == ("team-a", scopes)


@pytest.mark.parametrize("name", ["Team A", "", "x" * 33, 'a"'])
def test_a_name_that_no_settings_file_takes_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", name]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "a-z" in said.err


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["new", "a", "--scope", "everything"])
    assert ended.value.code == 2
