"""Runs one command and ends it when the service is gone: ``guard.py GRACE_SECONDS COMMAND ...``.

The service holds the other end of this process's standard input. Its end, by the service's will
or by its death, is the one signal to stop: SIGTERM, after the grace period SIGKILL, for all
processes of the command. So a search never outlives its service, and neither does an engine that
it started. The exit code is the command's, or 128 + signal.

The service starts this file by its path, outside of any package: standard library only.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

CANNOT_START = 127


def main(arguments: Sequence[str]) -> int:
    """Run the command to its end; returns its exit code."""
    grace_seconds, *command = arguments
    # Who stops a whole process group must not take the guard away. A handler, unlike an ignored
    # signal, is not inherited by the command.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        # close_fds: the command holds the lock of the job folder, which came as an open file
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=False
        )
    except OSError as err:
        print(f"cannot start {command[0]}: {err}", file=sys.stderr)
        return CANNOT_START
    threading.Thread(target=_stop, args=(child, float(grace_seconds)), daemon=True).start()
    code = child.wait()
    _signal_all(child, signal.SIGKILL)  # what the command left behind: an engine
    return code if code >= 0 else 128 - code


def _stop(child: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """Wait for the end of standard input, then end the command."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _signal_all(child, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(grace_seconds)
        return
    _signal_all(child, signal.SIGKILL)


def _signal_all(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
