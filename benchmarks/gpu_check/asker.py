"""One engine of the stage ``right``: ``python -m benchmarks.gpu_check.asker SETUP.json ANSWER.json``.

It asks the demo model all questions in one batch and writes tokens, how clear each was, and what
the engine was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.arms import ENVIRONMENT, PLUGINS, classes
from vtr_vllm import demo
from vtr_vllm.schedules import ModelGeometry, RankRule, ScheduleBook, explicit

Asked = tuple[int, str | None]
"""A question's number, and the schedule it is asked under; None says nothing of one."""


def prompt(question: int) -> dict[str, Any]:
    """Return prompt and image of a question."""
    sample = demo.sample("test", question)
    return {"prompt": demo.prompt(sample.question), "multi_modal_data": {"image": sample.image}}


ADAPTIVE = "adaptive-cuts"
"""Name of a schedule whose counts the model finds."""


def book() -> ScheduleBook:
    """Return the demo model's schedules: the built-in forms, and one with adaptive cuts."""
    config = json.loads((demo.CHECKPOINT / "config.json").read_text())
    geometry = ModelGeometry.from_config(config["text_config"])
    keep = [1.0] * 2 + [0.9] * 4 + [0.6] * (geometry.layers - 6)
    rules = [RankRule.parse("instruction@0.9"), RankRule.parse("last@0.9")]
    return ScheduleBook(geometry, [explicit(geometry, keep, rules, ADAPTIVE)])


def start(setup: dict[str, Any]) -> Any:
    """Return the engine that ``setup`` describes."""
    from vllm import LLM

    arguments: dict[str, Any] = {
        "model": str(demo.CHECKPOINT),
        "block_size": 32,
        "max_model_len": 1024,
        "max_num_batched_tokens": 4096,
        "max_num_seqs": 64,
        "limit_mm_per_prompt": {"image": 1},
        "mm_processor_cache_gb": 0,
        "disable_log_stats": True,
        "max_logprobs": 4,
        "seed": 0,
    }
    return LLM(**(arguments | classes(setup["arm"]) | setup["engine"]))


def ask(llm: Any, setup: dict[str, Any]) -> list[dict[str, Any]]:
    """Return tokens, margins and what adaptive cuts found of every request, in the order of
    ``setup["asked"]``."""
    from vllm import SamplingParams

    from vtr_vllm.engine.frontend.first_tokens import collect_first_tokens

    schedules, params = book(), []
    for _, name in setup["asked"]:
        wire = None if name is None else schedules.by_name(name).wire()
        params.append(
            SamplingParams(
                temperature=0.0,
                max_tokens=setup["tokens"],
                ignore_eos=True,
                logprobs=2,
                extra_args=wire,
            )
        )
    with collect_first_tokens() as first:
        outputs = llm.generate(
            [prompt(question) for question, _ in setup["asked"]], params, use_tqdm=False
        )
    return [
        answer(output.outputs[0]) | {"found": first.counts(output.request_id)} for output in outputs
    ]


def answer(output: Any) -> dict[str, Any]:
    """Return the tokens of one answer, and by how much each led, in nats."""
    margins = []
    for step in output.logprobs:
        best = sorted((entry.logprob for entry in step.values()), reverse=True)
        margins.append(best[0] - best[1])
    return {"tokens": list(output.token_ids), "margins": margins}


def facts(llm: Any, arm: str) -> dict[str, Any]:
    """Return what the engine turned out to be."""
    config = llm.llm_engine.vllm_config
    layers = config.compilation_config.static_forward_context.values()
    backends = {layer.get_attn_backend().get_name() for layer in layers if is_attention(layer)}
    found: dict[str, Any] = {
        "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        "compilation_mode": int(config.compilation_config.mode or 0),
        "async_scheduling": bool(config.scheduler_config.async_scheduling),
        "runner": "v2" if config.use_v2_model_runner else "v1",
        "attention": sorted(backends),
    }
    if arm == "vtr":
        (found["status"],) = llm.collective_rpc("vtr_status")
        (found["counters"],) = llm.collective_rpc("vtr_counters")
    return found


def is_attention(layer: Any) -> bool:
    """Whether a layer of vLLM's has KV of its own."""
    return hasattr(layer, "get_attn_backend")


def main() -> None:
    """Ask what the first file says and write the answers into the second."""
    from tests.vtr_vllm.engine.support import note_preemptions  # vLLM behind it

    setup = json.loads(Path(sys.argv[1]).read_text())
    llm = start(setup)
    preempted = note_preemptions(llm)
    answers = ask(llm, setup)
    result = {"answers": answers, "preempted": len(preempted), **facts(llm, setup["arm"])}
    Path(sys.argv[2]).write_text(json.dumps(result))


def environment(arm: str) -> dict[str, str]:
    """Return what the process of ``arm`` runs with, beside what all have."""
    return ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_PLUGINS": PLUGINS[arm]}


if __name__ == "__main__":
    main()
