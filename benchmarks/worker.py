"""One arm of the comparison: a vLLM engine in a process of its own, driven by JSON lines.

``python -m benchmarks.worker`` reads a setup line, answers with what it found, then answers one
measurement per line until its input ends. The engine runs inside this process and is stepped by
hand, so that arrival and token times are taken at the same place in both arms.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

import psutil

from benchmarks.arms import classes
from benchmarks.report import percentile
from benchmarks.shapes import make_request


@dataclass
class Flight:
    """One request under way."""

    started: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each token was seen."""


class KvWatch:
    """Reads the scheduler right after each step is scheduled, where use of the KV pool peaks."""

    def __init__(self, scheduler: Any) -> None:
        self.pool = scheduler.kv_cache_manager.block_pool
        config = scheduler.kv_cache_config
        self.groups = [len(group.layer_names) for group in config.kv_cache_groups]
        # A block holds the pages of one group's layers; groups overlay each other.
        self.bytes_per_block = max(
            group.kv_cache_spec.page_size_bytes * len(group.layer_names)
            for group in config.kv_cache_groups
        )
        self.begin()
        inner = scheduler.schedule

        def schedule(*args: object, **kwargs: object) -> object:
            output = inner(*args, **kwargs)
            used = self.pool.num_gpu_blocks - 1 - self.pool.get_num_free_blocks()  # 1: null block
            self.peak_blocks = max(self.peak_blocks, used)
            self.block_steps += used
            self.peak_running = max(self.peak_running, len(scheduler.running))
            return output

        scheduler.schedule = schedule

    def begin(self) -> None:
        """Forget what was seen."""
        self.peak_blocks = self.peak_running = 0
        self.block_steps = 0
        """Blocks in use, summed over the steps: what is held over time."""


class Stages:
    """Times what no schedule makes cheaper: rendering a prompt and its image, and the vision tower.

    On a GPU the tower's time is not the host's, and stays unknown.
    """

    def __init__(self, engine: Any) -> None:
        import torch

        self._seconds = {"render_s": 0.0}
        self._time(engine, "add_request", "render_s")
        if not torch.cuda.is_available():
            self._seconds["tower_s"] = 0.0
            model = engine.model_executor.driver_worker.worker.get_model()
            self._time(model, "embed_multimodal", "tower_s")

    def _time(self, owner: Any, method: str, stage: str) -> None:
        inner = getattr(owner, method)

        def timed(*args: object, **kwargs: object) -> object:
            begun = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._seconds[stage] += time.perf_counter() - begun

        setattr(owner, method, timed)

    def take(self) -> dict[str, float]:
        """Return the seconds by stage since the last call."""
        taken = self._seconds.copy()
        self._seconds.update(dict.fromkeys(taken, 0.0))
        return taken


class Machine:
    """What this process and all others took of the CPU during a measurement.

    ``more``: CPU seconds so far of processes that are measured with this one.
    """

    def __init__(self, more: Callable[[], float] = lambda: 0.0) -> None:
        self.process, self.more = psutil.Process(), more
        self.wall, self.busy, self.own = time.monotonic(), self._busy(), self._own()
        self.faults = self._faults()

    def facts(self) -> dict[str, float]:
        """Return CPU seconds, page faults here, and the mean number of cores busy elsewhere."""
        wall = max(time.monotonic() - self.wall, 1e-3)
        own = self._own() - self.own
        foreign = max(0.0, (self._busy() - self.busy - own) / wall)
        faults = self._faults() - self.faults
        return {"cpu_s": own, "foreign_cores": round(foreign, 3), "page_faults": faults}

    @staticmethod
    def _busy() -> float:
        times = psutil.cpu_times()
        return sum(times) - times.idle - getattr(times, "iowait", 0.0)

    @staticmethod
    def _faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def _own(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system + self.more()


class Worker:
    """An engine with one shape's settings."""

    def __init__(self, setup: dict[str, Any]) -> None:
        from vllm import LLM  # after the environment is set

        args = setup["engine_args"] | classes(setup["arm"])
        self.shape = setup["shape"]
        self.engine = LLM(**args).llm_engine
        self.watch = KvWatch(self.engine.engine_core.engine_core.scheduler)
        self.stages = Stages(self.engine)
        self.prompt_tokens = 0

    def info(self) -> dict[str, object]:
        """Return what the parent wants to know of this arm."""
        import torch
        import vllm

        return {
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "kv_groups": self.watch.groups,
            "kv_bytes_per_block": self.watch.bytes_per_block,
            "plugins": os.environ.get("VLLM_PLUGINS"),
        }

    def measure(self, spec: dict[str, Any]) -> dict[str, object]:
        """Run ``spec['requests']`` requests, at most ``spec['concurrency']`` at once.

        With ``spec['render_first']`` prompts and images are rendered before the clock starts, as
        they are in a process of their own in a server. ``spec['wires']`` has one for each request.
        """
        first, wires = spec["first"], spec.get("wires") or [spec["wire"]] * spec["requests"]
        waiting = deque(
            (f"r{i}", make_request(self.shape, i), sampling(wire, spec["output_tokens"]))
            for i, wire in enumerate(wires, first)
        )
        if spec.get("render_first"):
            waiting = deque(
                (name, rendered(self.engine, name, at, params), params)
                for name, at, params in waiting
            )
        self.watch.begin()
        self.stages.take()
        machine, begun = Machine(), time.perf_counter()
        flights = self._fly(waiting, spec["concurrency"])
        wall = time.perf_counter() - begun
        result = summary(list(flights.values()), wall)
        result |= machine.facts() | self.stages.take()
        result |= {
            "kv_peak_blocks": self.watch.peak_blocks,
            "kv_peak_bytes": self.watch.peak_blocks * self.watch.bytes_per_block,
            "kv_block_steps": self.watch.block_steps,
            "peak_running": self.watch.peak_running,
            "prompt_tokens": self.prompt_tokens,
            "tokens": [flights[name].tokens for name in sorted(flights)],
        }
        return result

    def _fly(self, waiting: deque, concurrency: int) -> dict[str, Flight]:
        flights: dict[str, Flight] = {}
        open_requests = 0
        while waiting or open_requests:
            while waiting and open_requests < concurrency:
                name, request, params = waiting.popleft()
                flights[name] = Flight(time.perf_counter())
                self.engine.add_request(name, request, params)
                open_requests += 1
            outputs = self.engine.step()
            now = time.perf_counter()
            for output in outputs:
                flight = flights[output.request_id]
                tokens = list(output.outputs[0].token_ids)
                flight.times += [now] * (len(tokens) - len(flight.tokens))
                flight.tokens = tokens
                self.prompt_tokens = len(output.prompt_token_ids)
                open_requests -= output.finished
        return flights


def sampling(wire: dict[str, Any], tokens: int) -> Any:
    """Return the parameters of an answer of exactly so many tokens."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, extra_args=wire)


def rendered(engine: Any, name: str, request: Any, params: Any) -> Any:
    """Return the request as a server's front end hands it to the engine's process."""
    return engine.input_processor.process_inputs(
        name, request, params, supported_tasks=engine.get_supported_tasks()
    )


def step_until_decoding(engine: Any) -> None:
    """Step until no request waits and all prompts are computed."""
    scheduler = engine.engine_core.engine_core.scheduler
    while scheduler.waiting or any(
        request.num_computed_tokens < request.num_prompt_tokens for request in scheduler.running
    ):
        engine.step()


def summary(flights: list[Flight], wall: float) -> dict[str, object]:
    """Return rates and latencies in seconds."""
    ttft = sorted(flight.times[0] - flight.started for flight in flights)
    gaps = sorted(
        later - earlier
        for flight in flights
        for earlier, later in zip(flight.times, flight.times[1:], strict=False)
    )
    return {
        "wall_s": wall,
        "requests": len(flights),
        "requests_per_s": len(flights) / wall,
        "ttft_median_s": statistics.median(ttft),
        "ttft_p95_s": percentile(ttft, 0.95),
        "itl_mean_s": statistics.fmean(gaps) if gaps else None,
        "itl_median_s": statistics.median(gaps) if gaps else None,
        "itl_p95_s": percentile(gaps, 0.95) if gaps else None,
    }


def serve(commands: TextIO, answers: TextIO, kind: type[Worker]) -> None:
    """Answer each line of ``commands`` with one line."""
    worker = kind(json.loads(commands.readline()))
    print(json.dumps(worker.info()), file=answers, flush=True)
    for line in commands:
        print(json.dumps(worker.measure(json.loads(line))), file=answers, flush=True)


def main(kind: type[Worker] = Worker) -> None:
    """Keep the pipe to the parent for answers; whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers, kind)


if __name__ == "__main__":
    main()
