"""Shell scripts of the repository."""

from __future__ import annotations

from tests.contract.source import ROOT, tracked_files
from tests.deploy.tools import run, tool


def scripts() -> list[str]:
    """Files that begin as a shell script does."""
    found = []
    for path in tracked_files():
        with (ROOT / path).open("rb") as file:
            if file.read(32).startswith((b"#!/usr/bin/env bash", b"#!/bin/sh", b"#!/bin/bash")):
                found.append(path)
    return found


def test_shellcheck_has_nothing_to_say() -> None:
    assert ".ci/run" in scripts()
    assert run(tool("shellcheck"), *scripts()) == ""
