"""Two tensor-parallel ranks that score rows differently: ``MEETING_FILE ANSWER_FILE ANSWER_FILE``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel

from tests.vtr_vllm.reduction.scores import scores_by
from tests.vtr_vllm.reduction.strategies import request_of
from vtr_vllm.engine.worker.scoring import chosen_by_first_rank
from vtr_vllm.reduction.batch import StepRequest, plan_batch
from vtr_vllm.reduction.gather import Rows

CUTS = {2: "saliency", 3: "cls"}


def choices(rank: int, agree: bool) -> list[list[int]]:
    """What is left of two requests after each cut."""
    first = request_of([range(2, 30)], 34, [1, 1, 0.5, 0.25], CUTS.values())
    second = request_of([range(1, 9), range(12, 20)], 25, [1, 1, 0.5, 0.25], CUTS.values())
    plan = plan_batch([StepRequest(0, 34, first), StepRequest(0, 25, second)], 4, [0])
    rows = Rows(plan, torch.device("cpu"))
    draw = torch.Generator().manual_seed(rank)
    left = []
    for layer in CUTS:
        members = plan.cuts[layer]
        drawn = scores_by(lambda _, vision: torch.rand(len(vision), generator=draw), rows, members)
        rows.cut(members, drawn, *([chosen_by_first_rank] if agree else []))
        left.append(rows.original.tolist())
    return left


def run(rank: int, meeting: str, answer: Path) -> None:
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(2, rank, f"file://{meeting}", rank, backend="gloo")
        initialize_model_parallel(2)
        with torch.inference_mode():
            answer.write_text(json.dumps([choices(rank, agree) for agree in (True, False)]))
    torch.distributed.destroy_process_group()


def main() -> None:
    """Both ranks are forks of this process, which has imported vLLM for them and done nothing else."""
    meeting, *answers = sys.argv[1:]
    children = []
    for rank, answer in enumerate(answers):
        if (child := os.fork()) == 0:
            run(rank, meeting, Path(answer))
            sys.exit()
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    main()
