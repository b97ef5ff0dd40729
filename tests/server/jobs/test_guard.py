"""One command, which ends when the guard's input does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import wait_until
from tests.server.jobs.conftest import is_alive
from vtr_server.jobs import guard

SLEEP = "import time; time.sleep(600)"


def guarded(code: str, grace_seconds: float = 30) -> subprocess.Popen[bytes]:
    command = [sys.executable, guard.__file__, str(grace_seconds), sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 128 + signal.SIGKILL),
    ],
)
def test_the_exit_code_is_the_commands(code: str, expected: int) -> None:
    process = guarded(code)
    assert process.wait() == expected
    process.communicate()


def test_the_end_of_input_ends_the_command() -> None:
    process = guarded(SLEEP)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


def test_what_the_command_started_ends_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib; "
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); "
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))"
    )
    process = guarded(code)
    assert process.wait() == 0
    process.communicate()
    wait_until(lambda: not is_alive(int(pid.read_text())) or is_zombie(int(pid.read_text())))


def test_a_signal_to_the_guard_alone_changes_nothing(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = guarded(f"import pathlib; pathlib.Path({str(ready)!r}).touch(); {SLEEP}")
    wait_until(ready.exists)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


def test_a_command_that_does_not_exist() -> None:
    command = [sys.executable, guard.__file__, "1", "no-such-command"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == guard.CANNOT_START
    assert "cannot start no-such-command" in done.stderr


def is_zombie(pid: int) -> bool:
    """Ended, with nobody to collect it: process 1 of a container may not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
