"""Write the demo model with registers as a checkpoint that ``vtr serve`` loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from vtr_vllm.demo.registers.packing import write


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
