"""What a step with cuts takes, in bytes that were allocated, is within what is reserved for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.vtr_vllm.atp.made import made_for
from tests.vtr_vllm.engine.conftest import LAYERS, Engines
from tests.vtr_vllm.engine.support import Case, picture, words
from vtr_vllm.engine.worker import memory
from vtr_vllm.engine.worker.memory import StepMemory, reserve
from vtr_vllm.training.llava import Llava

GIB = 1 << 30
LLAVA_7B = StepMemory(
    hidden=4096, query=4096, key=4096, heads=32, element=2, longest=4096, layers=32
)
CURVES = {
    "stock": (None, ()),
    "last": ((1.0, 1.0) + (0.9,) * (LAYERS - 2), ("last",)),
    "instruction": ((1.0,) * (LAYERS - 1) + (0.9,), ("instruction",)),
    "norope": ((1.0, 1.0, 1.0) + (0.9,) * (LAYERS - 3), ("instruction-norope-max",)),
    "saliency": ((0.9,) * LAYERS, ("saliency",)),
    "merging": ((1.0,) + (0.9,) * (LAYERS - 1), ("saliency+nearest",)),
    "neighbours": ((1.0, 1.0) + (0.6,) * (LAYERS - 2), ("last+neighbours",)),
    "atp": ((1.0, 1.0) + (0.9,) * (LAYERS - 2), ("atp",)),
    "floors": ((1.0, 1.0, 0.9) + (0.8,) * (LAYERS - 3), ("last", "previous")),
}


def peak(found: Any) -> int:
    """Most bytes that were held at a time, above what was held at the beginning."""
    events = found.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


BATCHES = {
    "one": ((60, 9, 60),),
    "uneven": ((300, 1, 300), *(((1, 1, 3),) * 5)),
}
"""Words before, between and behind two images, of each request of a step."""


def cases(batch: str, curve: str) -> list[Case]:
    keep, rules = CURVES[curve]
    floor = 0.5 if curve == "floors" else 0.0
    images = 1 if curve == "atp" else 2
    return [
        Case(
            "<image>".join(
                words(10 * i + part, n) for part, n in enumerate(lengths[-1 - images :])
            ),
            tuple(picture(2 * i + image) for image in range(images)),
            keep,
            rules,
            floor=floor,
        )
        for i, lengths in enumerate(BATCHES[batch])
    ]


@pytest.fixture(scope="module")
def modules(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atp")
    made_for(Llava.load(str(checkpoint)), folder, (2,))
    return folder


@pytest.mark.engine
@pytest.mark.parametrize("batch", BATCHES)
def test_a_step_with_cuts_takes_no_more_than_is_reserved(
    engines: Engines,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    modules: Path,
    batch: str,
) -> None:
    with_modules = {"vtr": {"atp": str(modules)}}
    llm = engines.get(model=checkpoint, enforce_eager=True, additional_config=with_modules)
    reduction = llm.llm_engine.model_executor.driver_worker.worker.get_model().reduction
    decoder = type(reduction.decoder._decoder)
    stock, steps = decoder.__call__, []

    def measured(*args: Any, **kwargs: Any) -> Any:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            answer = stock(*args, **kwargs)
        steps.append((args[2].shape[-1], peak(found)))
        return answer

    monkeypatch.setattr(decoder, "__call__", measured)
    takes = {}
    for curve in CURVES:
        llm.reset_prefix_cache()
        given = cases(batch, curve)
        steps.clear()
        params = [case.params(1) for case in given]
        outputs = llm.generate([case.prompt for case in given], params, use_tqdm=False)
        assert len(steps) == 1, steps
        ((rows, takes[curve]),) = steps
    # As if no request could be longer than these: or the bound is wide, and shows little.
    longest = max(len(output.prompt_token_ids) for output in outputs)
    reserved = replace(reduction._memory, longest=longest).peak(rows, takes["stock"])
    assert max(takes.values()) > takes["stock"], "or nothing would have to be reserved"
    assert {name: bytes_ for name, bytes_ in takes.items() if bytes_ > reserved} == {}
    assert reserved < 4 * max(takes.values())


def test_a_step_of_llava_is_given_little_more_than_a_layer_takes() -> None:
    layer = 600 << 20
    given = LLAVA_7B.peak(8192, layer)
    assert layer + (256 << 20) < given < layer + GIB // 2
    assert LLAVA_7B.peak(8192, 2 * GIB) < 2 * GIB + GIB // 2


def test_a_gpu_s_memory_is_taken_once_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * GIB)
    monkeypatch.setattr(memory.torch, "empty", lambda size, **how: taken.append((size, how)))
    reserve(LLAVA_7B, 8192, torch.device("cpu"))
    assert taken == []
    device = torch.device("cuda", 0)
    reserve(LLAVA_7B, 8192, device)
    assert taken == [(LLAVA_7B.peak(8192, 3 * GIB), {"dtype": torch.uint8, "device": device})]
