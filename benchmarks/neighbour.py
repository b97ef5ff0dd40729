"""One arm of the length benchmark: ``python -m benchmarks.neighbour``, driven by JSON lines.

As ``benchmarks.worker``, but one long prompt at a time, beside a short request that decodes meanwhile.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

from benchmarks.shapes import make_long_request
from benchmarks.worker import Machine, Worker, main, rendered

SETTLE = 4
"""Tokens of the neighbour before the long prompt comes."""
MOST_TOKENS = 2000
"""Of the neighbour; it is ended with the long prompt's first token."""


class Neighbourhood(Worker):
    """An engine that gets a long prompt while it decodes for somebody else."""

    def measure(self, spec: dict[str, Any]) -> dict[str, object]:
        """Run prompt number ``spec['first']`` of ``spec['form']`` to its first token."""
        from vllm import SamplingParams

        short = SamplingParams(temperature=0.0, max_tokens=MOST_TOKENS, ignore_eos=True)
        long = SamplingParams(
            temperature=0.0, max_tokens=1, ignore_eos=True, extra_args=spec["wire"]
        )
        request = make_long_request(self.shape, spec["form"], spec["count"], spec["first"])
        prompt = rendered(self.engine, "long", request, long)
        self.engine.add_request("neighbour", {"prompt_token_ids": [1, 9, 8, 7]}, short)
        times: list[float] = []
        while len(times) < SETTLE:
            self._step(times)
        self.watch.begin()
        del times[:-1]
        machine, begun = Machine(), time.perf_counter()
        self.engine.add_request("long", prompt, long)
        steps, answer = 0, None
        while answer is None:
            answer = self._step(times)
            steps += 1
        wall = time.perf_counter() - begun
        facts = machine.facts()
        self._step(times)
        self.engine.abort_request(["neighbour"])
        while self.engine.has_unfinished_requests():
            self.engine.step()
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return facts | {
            "ttft_s": wall,
            "steps": steps,
            "longest_gap_s": max(gaps),
            "prompt_tokens": len(answer.prompt_token_ids),
            "tokens": list(answer.outputs[0].token_ids),
            "kv_peak_bytes": self.watch.peak_blocks * self.watch.bytes_per_block,
        }

    def _step(self, times: list[float]) -> Any:
        """Step once; note when the neighbour got a token, and return the long prompt's answer."""
        found = None
        for output in self.engine.step():
            if output.request_id.startswith("neighbour"):
                times.append(time.perf_counter())
            elif output.finished:
                found = output
        return found


if __name__ == "__main__":
    main(Neighbourhood)
