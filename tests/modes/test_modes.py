"""The mixed batch gives the same tokens in each mode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.families.cases import FamilyCase, requests
from tests.families.cases import picture as family_picture
from tests.families.table import FAMILIES
from tests.modes.cases import BLIND, HALF, QUARTER, STEPS, TOKENS, full, mixed, reduced
from tests.modes.run import Job, Tokens, run
from tests.modes.table import WORKS, Works
from tests.reference.model import ReferenceLlava
from tests.vtr_vllm.atp.made import made_for
from tests.vtr_vllm.engine.support import Case, picture, words
from vtr_vllm.training.llava import Llava

pytestmark = pytest.mark.modes

BATCHED = [line for line in WORKS if line.engine is not None]
STEP = 400


def test_the_plain_engine_is_stock_vllm_at_full_budget(checkpoint: Path, plain: Tokens) -> None:
    (stock,) = run(Job(checkpoint, [full()], stock=True), TOKENS)
    assert plain[-len(stock) :] == stock
    assert len({tuple(tokens) for tokens in plain}) > len(plain) / 2, "answers differ"


@pytest.mark.parametrize("mode", BATCHED, ids=lambda mode: mode.name)
def test_same_tokens_as_the_plain_engine(mode: Works, checkpoint: Path, plain: Tokens) -> None:
    assert mode.engine is not None
    job = Job(checkpoint, [mixed()], mode.engine, mode.environment)
    (answers,) = run(job, TOKENS)
    assert answers == plain


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_async_scheduling(checkpoint: Path, runner: str) -> None:
    """A step is scheduled while the last one runs, in a KV cache that forces preemption."""
    overlapping = {
        "async_scheduling": True,
        "max_num_batched_tokens": 450,
        "max_model_len": 448,
        "num_gpu_blocks_override": 140,
    }
    requests, max_tokens = [*mixed(), *mixed()], 40
    (plain,) = run(Job(checkpoint, [requests]), max_tokens)
    environment = {"VTR_TEST_RUNNER": runner}
    (answers,) = run(Job(checkpoint, [requests], overlapping, environment), max_tokens)
    assert answers == plain


@pytest.mark.parametrize("how", ["two ranks", "async", "v2"])
def test_trained_modules(checkpoint: Path, tmp_path: Path, how: str) -> None:
    """One rank decides; in a KV cache that forces preemption where steps overlap."""
    made_for(Llava.load(str(checkpoint)), tmp_path, (2, 5))
    with_modules = {"additional_config": {"vtr": {"atp": str(tmp_path)}}}
    keep = (1.0, 1.0, *[0.9999] * 3, *[0.9998] * 3)
    judged = [
        Case(f"{words(i, 9)}<image>{words(i + 9, 9 + i)}", (picture(i),), keep, ("atp", "atp"))
        for i in range(8)
    ]
    requests = [*judged, *full()] * 2
    (plain,) = run(Job(checkpoint, [requests], with_modules), 40)
    two = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    overlapping = {"async_scheduling": True, "num_gpu_blocks_override": 120, "max_model_len": 352}
    engine, environment = {
        "two ranks": (two, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}),
        "async": (overlapping, {}),
        "v2": ({}, {"VTR_TEST_RUNNER": "v2"}),
    }[how]
    (answers,) = run(Job(checkpoint, [requests], with_modules | engine, environment), 40)
    assert answers == plain


@pytest.mark.timeout(1800)  # the interpreter runs every kernel
def test_full_graphs_of_decode_steps(checkpoint: Path) -> None:
    """Requests that come and go, in steps that are captured once and replayed, padded to some size."""
    requests = [*reduced(("last",), ("saliency",))[:2], *full()]
    (plain,) = run(Job(checkpoint, [requests]), TOKENS)
    engine = {"max_num_seqs": 4}
    environment = {"VTR_TEST_RUNNER": "v2"}
    (answers,) = run(Job(checkpoint, [requests], engine, environment, graphs=True), TOKENS)
    assert answers == plain


def test_images_as_embeddings(checkpoint: Path) -> None:
    """What the tower makes of the images is sent in their place, under other names."""
    reference = ReferenceLlava(checkpoint)
    rules = [rule for rule in BLIND if rule not in ("cls", "random")]
    cases = [*reduced(blind=rules), *full()]
    embedded = [
        Case(
            case.text,
            tuple(reference._embed_images([*case.images])[0].detach()) if case.images else (),
            case.keep,
            case.rules,
        )
        for case in cases
    ]
    (plain,) = run(Job(checkpoint, [cases]), TOKENS)
    (answers,) = run(Job(checkpoint, [embedded], {"enable_mm_embeds": True}), TOKENS)
    assert answers == plain


def test_m_rope(tmp_path: Path) -> None:
    """Qwen2.5-VL on two ranks that share its images out, in steps shorter than a prompt."""
    (family,) = (family for family in FAMILIES if family.name == "qwen2.5-vl")
    family.write(tmp_path)
    keeps = ((QUARTER, ("last",) * 3), (HALF, ("saliency",)), (STEPS, ("instruction", "previous")))
    cases = [
        replace(case, keep=keep, rules=rules)
        for seed, (keep, rules) in enumerate(keeps)
        for case in requests(family, seed)
    ]
    long = f"{words(1, STEP + 50)}{family.image}{words(2, 9)}"
    cases.append(FamilyCase(long, (family_picture(family.sizes[0], 1),), QUARTER, ("last",) * 3))
    cases += requests(family, 9)
    (plain,) = run(Job(tmp_path, [cases], family.engine), TOKENS)
    engine = {
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "max_num_batched_tokens": STEP,
        "max_num_seqs": 8,
        "mm_encoder_tp_mode": "data",
    }
    ranks = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    (answers,) = run(Job(tmp_path, [cases], {**family.engine, **engine}, ranks), TOKENS)
    assert answers == plain
