"""The stages in their order: what would be missed most comes first."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

DRY_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # threads that wait for each other cost more than they bring
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@dataclass(frozen=True)
class Stage:
    """A stage, whose module has its name."""

    name: str
    shows: str
    limit_s: float
    measures: bool = True
    """Whether it measures shapes, by the options that all such stages have."""

    def command(
        self, dry_run: bool, seconds: float, out: Path | None, fast_start: bool
    ) -> list[str]:
        """Return the command of its process; traces go to ``out``.

        A stage that measures is told its ``seconds``, and leaves out loads that it has no time for.
        """
        found = [sys.executable, "-m", f"benchmarks.gpu_check.{self.name}"]
        if self.name == "environment":
            return found
        if self.measures:
            found += ["--seconds", str(round(seconds))]
        if self.measures and out is not None:
            found += ["--out", str(out)]
        if self.measures and fast_start:
            found.append("--fast-start")
        return [*found, "--dry-run"] if dry_run else found

    def environment(self, dry_run: bool) -> dict[str, str]:
        """Return what its process needs in its environment."""
        return DRY_ENVIRONMENT if dry_run else {}


STAGES = (
    Stage(
        "environment", "versions, card, FlashAttention 3, the card's ceilings", 60, measures=False
    ),
    Stage("right", "stock's tokens at budget 1.0, the reference's below it", 180, measures=False),
    Stage("fast", "LLaVA-1.5-7B's shape beside stock: prefill and serving", 300),
    Stage("hot", "the largest of host and device in a prefill and a decode step", 200),
    Stage("families", "all families; InternVL2-8B's and Qwen2.5-VL-7B's shapes", 420),
    Stage("search", "evaluations a minute of one engine", 90),
)
