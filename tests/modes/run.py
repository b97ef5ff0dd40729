"""One engine in a process of its own: reads jobs, writes tokens.

``python -m tests.modes.run JOB.pickle TOKENS.json``. Modes differ in what they do to a process
(parallel ranks, compilers, environments), so none shares one with another.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tokens = list[list[int]]


@dataclass(frozen=True)
class Job:
    """Rounds of requests, one after another on one engine."""

    model: Path
    rounds: Sequence[Sequence[Any]]
    """Cases, each round a batch."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``vllm.LLM`` beside those of every engine test."""
    environment: Mapping[str, str] = field(default_factory=dict)
    adapter: Path | None = None
    """A LoRA adapter, for the requests that ``adapted`` marks."""
    adapted: Sequence[Sequence[bool]] = ()
    """Per round and request."""
    stock: bool = False
    """Without VTR."""
    graphs: bool = False
    """Decode steps are captured and replayed, as full CUDA graphs are; on runner V2."""


def run(job: Job, max_tokens: int) -> list[Tokens]:
    """Greedy tokens of every round."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "job"), Path(folder, "tokens")
        asked.write_bytes(pickle.dumps((job, max_tokens)))
        plugins = {"VLLM_PLUGINS": ""} if job.stock else {}
        subprocess.run(
            [sys.executable, "-m", "tests.modes.run", asked, answered],
            env=os.environ | plugins | job.environment,
            check=True,
        )
        tokens: list[Tokens] = json.loads(answered.read_text())
    return tokens


def main() -> None:
    import tests.conftest  # noqa: F401  (the environment, before vllm)
    from tests.vtr_vllm.engine.support import note_preemptions, start, tokens

    job, max_tokens = pickle.loads(Path(sys.argv[1]).read_bytes())
    engine = dict(job.engine) | ({"worker_cls": "auto", "scheduler_cls": None} if job.stock else {})
    if engine.get("async_scheduling"):
        _allow_async_scheduling()
    if job.graphs:
        from tests.modes.graphs import Replays

        replays = Replays()
        replays.patch()
    llm = start(job.model, **engine)
    if job.graphs:
        replays.capture(llm)
    preempted = note_preemptions(llm) if "num_gpu_blocks_override" in engine else None
    lora = None
    if job.adapter is not None:
        from vllm.lora.request import LoRARequest

        lora = LoRARequest("tiny", 1, str(job.adapter))
    answers = []
    for number, cases in enumerate(job.rounds):
        adapted = job.adapted[number] if job.adapted else [False] * len(cases)
        outputs = llm.generate(
            [case.prompt for case in cases],
            [case.params(max_tokens) for case in cases],
            lora_request=[lora if with_lora else None for with_lora in adapted],
            use_tqdm=False,
        )
        answers.append(tokens(outputs))
    if engine.get("async_scheduling"):
        assert llm.llm_engine.engine_core.engine_core.batch_queue is not None, (
            "steps do not overlap"
        )
    assert not job.graphs or replays.reduced, "no step of reduced requests was replayed"
    assert preempted is None or preempted, "a KV cache of this size preempted nothing"
    Path(sys.argv[2]).write_text(json.dumps(answers))


def _allow_async_scheduling() -> None:
    """Undo what vLLM's CPU platform does to the flag: the steps overlap there as well."""
    from vllm.config import VllmConfig
    from vllm.platforms.cpu import CpuPlatform

    stock = CpuPlatform.check_and_update_config

    def check(vllm_config: VllmConfig) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        stock(vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    CpuPlatform.check_and_update_config = staticmethod(check)


if __name__ == "__main__":
    # Ranks of tensor parallelism are spawned, and import this module again.
    main()
