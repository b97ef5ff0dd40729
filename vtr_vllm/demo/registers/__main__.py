"""Write the demo model with registers as a checkpoint that ``vtr serve`` loads."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.registers import DELTA, SCHEDULES

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def write(folder: Path) -> None:
    """Write weights, configuration, processor and ``schedules/`` into ``folder``; OSError passes through."""
    shutil.copytree(
        CHECKPOINT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md")
    )
    shutil.copytree(SCHEDULES, folder / "schedules", dirs_exist_ok=True)
    delta = load_file(DELTA)
    save_file({**load_file(CHECKPOINT / _WEIGHTS), **delta}, folder / _WEIGHTS, {"format": "pt"})
    path = folder / _CONFIG
    config = json.loads(path.read_text()) | {"vtr_registers": len(delta["registers"])}
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Read the folder from the command line, and write into it."""
    parser = argparse.ArgumentParser(
        prog="python -m vtr_vllm.demo.registers",
        description="Write the demo model with registers as a checkpoint, with its schedules.",
    )
    parser.add_argument("folder", type=Path, help="where to")
    folder: Path = parser.parse_args().folder
    write(folder)
    print(f"vtr serve --model {folder} --schedules {folder / 'schedules'}")


if __name__ == "__main__":
    main()
