"""What every benchmark does: it says how far it is and what it ran on, and keeps what it found."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import ENVIRONMENT, ROOT


def say(line: str) -> None:
    """Print progress beside the results."""
    print(line, file=sys.stderr, flush=True)


def commit() -> str | None:
    """Return what is checked out; None without git or outside of a clone."""
    if shutil.which("git") is None:
        return None
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or None


def machine() -> dict[str, object]:
    """Return what the numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg(),
        "environment": ENVIRONMENT,
    }


def measured_with(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a results file's ``meta`` holds: ``machine()``, and all options, paths as text."""
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    return {**machine(), "options": asked}


def write(out: Path, results: object) -> None:
    """Write the results as JSON, over what was there; folders are made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def save(out: Path, results: object, text: str) -> None:
    """Write the results as JSON, the tables beside it as Markdown, and print the tables."""
    write(out, results)
    out.with_suffix(".md").write_text(text + "\n")
    print(text)
