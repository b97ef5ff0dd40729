"""One arm of the host benchmark: ``python -m benchmarks.host_worker``, driven by JSON lines.

As ``benchmarks.worker``, but single steps are timed, with the parts that both arms have.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

from benchmarks.shapes import make_request
from benchmarks.worker import Worker, main, rendered, step_until_decoding
from tests.vtr_vllm.engine.operations import Operations

SETTLE = 4
"""Decode steps before the first that counts."""


class HostWorker(Worker):
    """An engine whose steps are timed one by one."""

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        self._parts: dict[str, float] = defaultdict(float)
        self._made = 0
        core = self.engine.engine_core.engine_core
        self._split(core.scheduler, "schedule", "schedule")
        self._split(core.scheduler, "update_from_output", "update")
        for method in ("execute_model", "sample_tokens"):
            self._split(core.model_executor, method, "model")

    def _split(self, owner: Any, method: str, part: str) -> None:
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._parts[part] += time.perf_counter() - begun

        setattr(owner, method, timed)

    def measure(self, spec: dict[str, Any]) -> dict[str, object]:
        """Time the steps of one ``benchmarks.host.Case``: medians, in milliseconds."""
        decode = spec["phase"] == "decode"
        steps = spec["steps"] if decode else 1
        repeats = 1 if decode else 5
        found = []
        for _ in range(repeats):
            self._add(spec, steps + SETTLE + 8 if decode else 1)
            if decode:
                step_until_decoding(self.engine)
                for _ in range(SETTLE):
                    self.engine.step()
            found += [self._timed() for _ in range(steps)]
            if decode:
                operations = self._counted()
            self._drain()
        if not decode:
            self._add(spec, 1)
            operations = self._counted()
            self._drain()
        keys = found[0].keys()
        medians = {key: 1e3 * statistics.median(each[key] for each in found) for key in keys}
        return {**medians, "operations": operations}

    def _add(self, spec: dict[str, Any], tokens: int) -> None:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, extra_args=spec["wire"]
        )
        for _ in range(spec["running"]):
            self._made += 1
            name = f"h{self._made}"
            request = make_request(self.shape, self._made)
            if not spec["image"]:
                request = {"prompt_token_ids": [1, *(10 + self._made * i % 200 for i in range(8))]}
            self.engine.add_request(name, rendered(self.engine, name, request, params), params)

    def _timed(self) -> dict[str, float]:
        self._parts.clear()
        begun = time.perf_counter()
        self.engine.step()
        return {"step": time.perf_counter() - begun, **self._parts}

    def _counted(self) -> int:
        with Operations() as operations:
            self.engine.step()
        return operations.counts.total()

    def _drain(self) -> None:
        while self.engine.has_unfinished_requests():
            self.engine.step()


if __name__ == "__main__":
    main(HostWorker)
