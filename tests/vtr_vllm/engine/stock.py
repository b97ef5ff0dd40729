"""A stock vLLM in a process of its own, without our plugin: reads requests, writes tokens.

``python -m tests.vtr_vllm.engine.stock REQUESTS.pickle TOKENS.json``
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def generate(model: Path, cases: list[Any], max_tokens: int) -> list[list[int]]:
    """Greedy tokens of stock vLLM, on the runner that this test run is for."""
    with tempfile.TemporaryDirectory() as folder:
        requests, answer = Path(folder, "requests"), Path(folder, "tokens")
        requests.write_bytes(pickle.dumps((str(model), cases, max_tokens)))
        subprocess.run(
            [sys.executable, "-m", "tests.vtr_vllm.engine.stock", requests, answer],
            env=os.environ | {"VLLM_PLUGINS": ""},
            check=True,
        )
        tokens: list[list[int]] = json.loads(answer.read_text())
    return tokens


def main() -> None:
    import tests.conftest  # noqa: F401  (the environment, before vllm)
    from tests.vtr_vllm.engine.support import start, tokens

    model, cases, max_tokens = pickle.loads(Path(sys.argv[1]).read_bytes())
    llm = start(model, worker_cls="auto", scheduler_cls=None)
    outputs = llm.generate(
        [case.prompt for case in cases],
        [case.params(max_tokens) for case in cases],
        use_tqdm=False,
    )
    Path(sys.argv[2]).write_text(json.dumps(tokens(outputs)))


if __name__ == "__main__":
    main()
