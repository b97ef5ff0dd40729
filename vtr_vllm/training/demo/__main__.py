"""Train, export and evaluate the demo model: see ``train``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.model import count_parameters
from vtr_vllm.errors import VTRError
from vtr_vllm.search.session import lock
from vtr_vllm.training.demo.evaluate import evaluate
from vtr_vllm.training.demo.export import export
from vtr_vllm.training.demo.shards import Crew
from vtr_vllm.training.demo.train import Recipe, Trainer
from vtr_vllm.training.state import STATE


def main() -> int:
    """Read the command line and train; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vtr_vllm.training.demo", description="Train the demo model from scratch."
    )
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the weights")
    parser.add_argument("--work", type=Path, default=Path("build/demo-model"))
    parser.add_argument("--talk", type=Path, help="folder of weights that phase 3 begins with")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        with lock(asked.work):
            trainer = Trainer(Recipe(), asked.work)
            if asked.talk is not None:
                if trainer.progress.phase == 3:
                    parser.error(
                        f"phase 3 has begun in {asked.work / STATE}; leave --talk out to go on, or"
                        " remove the file"
                    )
                trainer.begin_talk(asked.talk)
            _train(trainer, asked.out)
    except (VTRError, OSError) as err:
        print(f"demo training: {err}", file=sys.stderr)
        return 1
    return 0


def _train(trainer: Trainer, out: Path) -> None:
    print(json.dumps({"parameters": count_parameters(trainer.model)}), flush=True)
    with Crew(trainer.model, trainer.recipe.shards) as crew:
        trainer.run(crew)
    export(trainer.model, out)
    torch.set_num_threads(trainer.recipe.shards)
    print(json.dumps(evaluate(out), indent=1), flush=True)


if __name__ == "__main__":
    sys.exit(main())
