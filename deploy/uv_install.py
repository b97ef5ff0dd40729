"""Installs with uv, in a fifth of pip's time: ``python deploy/uv_install.py ARGUMENTS``, those of ``pip install``.

uv does not read pip's configuration (indexes, mirrors, constraints, certificates). Here it is said
in uv's words. Status 1, with nothing done, where it has a word that uv lacks; pip is the next step.
"""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

# pip's option -> uv's variable, and what stands between its values
WORDS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}
# What changes nothing of what is installed.
IDLE = {
    *("cache-dir", "config-file", "disable-pip-version-check", "no-cache-dir", "no-color"),
    *("no-compile", "no-input", "no-python-version-warning", "no-warn-script-location"),
    *("prefer-binary", "progress-bar", "quiet", "require-virtualenv", "retries"),
    *("root-user-action", "verbose"),
}
# Of several files and variables that name one option, the later counts.
PLACES = ("global", "install", ":env:")


def configuration(listing: str) -> dict[str, str]:
    """Return option -> value out of the lines of ``pip config list``."""
    found: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        place, _, option = name.rpartition(".")
        option = option.removeprefix("default-")
        if place in PLACES:
            found[option] = max(
                found.get(option, (-1, "")), (PLACES.index(place), ast.literal_eval(value))
            )
    return {option: value for option, (_, value) in found.items()}


def in_uvs_words(options: dict[str, str]) -> dict[str, str]:
    """Return uv's variables; ValueError for an option that has none."""
    if lacking := sorted(options.keys() - WORDS.keys() - IDLE):
        raise ValueError(f"pip is configured with {', '.join(lacking)}, which uv is not told here")
    said = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip: the best of all indexes
    for option, value in options.items():
        if option in WORDS:
            name, between = WORDS[option]
            said[name] = between.join(value.split())
    return said


def main() -> int:
    """Install what the arguments say."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        return 1
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    try:
        said = in_uvs_words(configuration(listing))
    except ValueError as error:
        print(f"setup: {error}")
        return 1
    command = [uv, "pip", "install", "--python", sys.executable, *sys.argv[1:]]
    print("setup:", shlex.join(command), flush=True)
    status = subprocess.run(command, env=said | os.environ, check=False).returncode
    if status != 0:
        print("setup: not with uv; next with pip")
    return status


if __name__ == "__main__":
    sys.exit(main())
