"""Steps with cuts in an engine that compiles: the same answers, from compiled layers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vllm.envs as envs
from torch import nn
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile
from vllm.config import CompilationMode
from vllm.engine.arg_utils import EngineArgs

from tests.tiny import tiny_llava
from tests.vtr_vllm.engine.conftest import LAYERS, SHAPE, Engines
from tests.vtr_vllm.engine.support import Case, logits, picture, tokens, words
from vtr_vllm.engine.worker.compiled import LayerRunner
from vtr_vllm.errors import ConfigurationError


def in_engine(test: Callable[..., None]) -> Callable[..., None]:
    """With an engine that compiles, by Inductor: slow."""
    return pytest.mark.engine(pytest.mark.slow(test))


TOLERANCE = 1e-4
CASES = [
    Case(
        words(1, 20) + "<image>" + words(2, 30),
        (picture(1),),
        (1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25),
        ("last", "instruction"),
    ),
    Case(
        "<image>" + words(3, 3),
        (picture(2),),
        (1.0, 1.0, 1.0, 0.3, 0.3, 0.1, 0.1, 0.1),
        ("last-norope", "previous"),
    ),
    Case("<image>" + words(4, 9), (picture(3),), (0.5,) * LAYERS, ("saliency",)),
    Case("<image>" + words(5, 13), (picture(4),)),
    Case(words(6, 40)),
]
ONE_ROW = Case("<image>?", (picture(5),), (1.0, 1.0) + (0.0,) * (LAYERS - 2), ("last",))
"""Its question alone stays: a single row, where a graph for several would not do."""


def run(llm: Any, cases: list[Case], max_tokens: int = 8, **options: Any) -> list[Any]:
    params = [case.params(max_tokens, **options) for case in cases]
    return llm.generate([case.prompt for case in cases], params, use_tqdm=False)


def compiled_calls(llm: Any, cases: list[Case]) -> Counter[str]:
    """Runs of each compiled graph in the one step that answers ``cases`` with a token."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run(llm, cases, max_tokens=1)
    return Counter(
        {e.key: e.count for e in seen.key_averages() if e.key.startswith("## Call CompiledFxGraph")}
    )


@in_engine
def test_the_answers_are_those_of_uncompiled_layers(engines: Engines, checkpoint: Path) -> None:
    given = [*CASES, ONE_ROW]
    answers = []
    for eager in (True, False):
        llm = engines.get(model=checkpoint, enforce_eager=eager)
        outputs = run(llm, given, logprobs=-1)
        answers.append((tokens(outputs), [logits(output, SHAPE.vocab) for output in outputs]))
    (eager_tokens, eager_logits), (compiled_tokens, compiled_logits) = answers
    assert compiled_tokens == eager_tokens
    for ours, theirs in zip(compiled_logits, eager_logits, strict=True):
        assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@in_engine
@pytest.mark.parametrize("given", [CASES, CASES[:1], [ONE_ROW]], ids=["mixed", "one", "one row"])
def test_every_layer_runs_compiled_and_nothing_is_compiled_for_a_request(
    engines: Engines, checkpoint: Path, given: list[Case]
) -> None:
    llm = engines.get(model=checkpoint, enforce_eager=False)
    before = dict(counters["stats"])
    calls = compiled_calls(llm, given)
    halves = 2 * LAYERS
    assert LAYERS <= sum(calls.values()) <= halves, calls
    (counted,) = llm.collective_rpc("vtr_counters")
    assert counted["uncompiled_layers"] == 0
    assert dict(counters["stats"]) == before


@in_engine
def test_enforce_eager_compiles_no_layer(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint, enforce_eager=True)
    calls = compiled_calls(llm, CASES)
    assert not calls


class Scaling(nn.Module):
    """A layer of a decoder; those with ``more`` have a second weight."""

    def __init__(self, factor: float, more: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((SHAPE.hidden,), factor), requires_grad=False)
        self.more = nn.Parameter(torch.tensor(factor), requires_grad=False) if more else None

    def forward(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = hidden + residual
        hidden = residual * self.weight + positions[:, None]
        return (hidden if self.more is None else hidden * self.more), residual


class Breaking(Scaling):
    """A layer that torch cannot compile as one graph."""

    def forward(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        torch._dynamo.graph_break()
        return hidden, residual


@in_engine
@pytest.mark.parametrize("uncached", [True, False])
def test_layers_that_differ_get_graphs_of_their_own(
    engines: Engines, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, uncached: bool
) -> None:
    llm = engines.get(model=checkpoint, enforce_eager=False)
    monkeypatch.setattr(envs, "VLLM_DISABLE_COMPILE_CACHE", uncached)
    runner = LayerRunner(llm.llm_engine.vllm_config)
    layers = [Scaling(1.5, more=False), Scaling(2.5, more=True), Scaling(3.5, more=False)]
    before = counters["stats"]["unique_graphs"]
    runner.warm_up(layers)
    assert counters["stats"]["unique_graphs"] - before == 2
    with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
        for rows in (1, 2, 77):
            positions, hidden = torch.arange(rows), torch.randn(rows, SHAPE.hidden)
            residual = torch.randn_like(hidden)
            for layer in layers:
                ours = runner(layer, positions, hidden, residual)
                torch.testing.assert_close(ours, layer(positions, hidden, residual))


@in_engine
def test_a_layer_that_does_not_compile_is_an_error_at_start(
    engines: Engines, checkpoint: Path
) -> None:
    llm = engines.get(model=checkpoint, enforce_eager=False)
    runner = LayerRunner(llm.llm_engine.vllm_config)
    with pytest.raises(ConfigurationError, match="--enforce-eager"):
        runner.warm_up([Breaking(1.0, more=False)])


@pytest.fixture
def warm() -> tuple[LayerRunner, Scaling]:
    """A runner that compiled one layer; by torch's plainest backend, whose guards are the same."""
    config = EngineArgs(str(tiny_llava()), dtype="float32").create_engine_config()
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    config.compilation_config.backend = "eager"
    config.model_config.hf_text_config.hidden_size = SHAPE.hidden
    runner, layer = LayerRunner(config), Scaling(1.5, more=False)
    runner.warm_up([layer])
    return runner, layer


def step(rows: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    hidden = torch.ones(rows, SHAPE.hidden, dtype=dtype)
    return torch.arange(rows), hidden, torch.ones(rows, SHAPE.hidden)


def test_a_layer_that_no_graph_fits_is_counted_and_said_once_a_cause(
    warm: tuple[LayerRunner, Scaling], caplog: pytest.LogCaptureFixture
) -> None:
    runner, layer = warm
    caplog.set_level(logging.WARNING, "vllm.vtr")
    with torch.inference_mode(), torch.compiler.set_stance("eager_on_recompile"):
        for rows in (1, 2, 77):
            runner(layer, *step(rows))
        assert (runner.misses, caplog.messages) == (0, [])
        for rows in (3, 5):
            given = step(rows, torch.bfloat16)
            torch.testing.assert_close(runner(layer, *given), layer(*given))
        assert runner.misses == 2
        assert len(caplog.messages) == 1
        assert "Scaling" in caplog.text
        assert "'hidden'" in caplog.text
        assert "expected Float, actual BFloat16" in caplog.text
        for rows in (6, 8):
            runner(layer, *(tensor[::2] for tensor in step(rows)))
        assert runner.misses == 4
        assert len(caplog.messages) == 2
        assert "stride mismatch" in caplog.messages[1]
        runner(layer, *step(4))
        assert runner.misses == 4


def test_layers_that_are_not_to_be_compiled_miss_nothing() -> None:
    config = EngineArgs(str(tiny_llava()), enforce_eager=True).create_engine_config()
    runner = LayerRunner(config)
    runner(Scaling(1.5, more=False), *step(3))
    assert runner.misses == 0
