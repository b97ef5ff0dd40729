"""Stock vLLM beside the tests: one process without our plugin that takes family after family.

``python -m tests.families.stock JOBS.pickle FD`` writes a line of JSON for each job.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """Requests to one checkpoint."""

    name: str
    model: Path
    cases: list[Any]
    max_tokens: int
    engine: dict[str, Any]


class Stock:
    """Answers jobs in their order, ahead of whoever asks for the answers."""

    def __init__(self, jobs: list[Job]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, "jobs")
        path.write_bytes(pickle.dumps(jobs))
        reads, writes = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.families.stock", str(path), str(writes)],
            env=os.environ | {"VLLM_PLUGINS": ""},
            pass_fds=[writes],
        )
        os.close(writes)
        self._lines = os.fdopen(reads)
        self._answers: dict[str, list[list[int]]] = {}

    def tokens(self, name: str) -> list[list[int]]:
        """Greedy tokens of each request of a job; waits for them."""
        while name not in self._answers:
            line = self._lines.readline()
            if not line:
                raise AssertionError(f"stock vLLM ended before it answered for {name}")
            self._answers.update(json.loads(line))
        return self._answers[name]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._lines.close()
        self._folder.cleanup()


def main() -> None:
    import tests.conftest  # noqa: F401  (the environment, before vllm)
    from tests.vtr_vllm.engine.conftest import Engines
    from tests.vtr_vllm.engine.support import tokens

    engines = Engines()
    jobs: list[Job] = pickle.loads(Path(sys.argv[1]).read_bytes())
    with os.fdopen(int(sys.argv[2]), "w") as answers:
        for job in jobs:
            llm = engines.get(model=job.model, worker_cls="auto", scheduler_cls=None, **job.engine)
            prompts = [case.prompt for case in job.cases]
            params = [case.params(job.max_tokens) for case in job.cases]
            found = tokens(llm.generate(prompts, params, use_tqdm=False))
            print(json.dumps({job.name: found}), file=answers, flush=True)
    engines.close()


if __name__ == "__main__":
    # The pickled class must be the one of the module's name, not of __main__.
    from tests.families import stock

    stock.main()
