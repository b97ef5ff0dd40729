"""What tensor-parallel ranks agree on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vtr_vllm.engine.conftest import Engines
from tests.vtr_vllm.engine.support import Case, picture, words
from vtr_vllm.engine.worker import decoder

SCRIPT = "tests.vtr_vllm.engine.worker.two_ranks"
ROOT = Path(__file__).parents[4]


def test_ranks_that_score_differently_keep_the_same_rows(tmp_path: Path) -> None:
    """Two processes that meet through vLLM's own group, over gloo."""
    answers = [tmp_path / str(rank) for rank in range(2)]
    command = [sys.executable, "-m", SCRIPT, str(tmp_path / "meeting"), *map(str, answers)]
    subprocess.run(command, cwd=ROOT, timeout=300, check=True)
    (agreed, alone), (other_agreed, other_alone) = (json.loads(a.read_text()) for a in answers)
    assert agreed == other_agreed == alone
    assert other_alone != alone


@pytest.mark.engine
def test_every_cut_of_a_step_asks_the_first_rank(
    engines: Engines, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engines.get(model=checkpoint)
    asked = []
    monkeypatch.setattr(
        decoder, "chosen_by_first_rank", lambda rows: asked.append(len(rows)) or rows
    )
    keep = (1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25)
    case = Case(f"<image>{words(1, 9)}", (picture(1),), keep, ("saliency", "last"))
    llm.generate([case.prompt], [case.params(2)], use_tqdm=False)
    assert len(asked) == 2
    assert asked[0] > asked[1]
