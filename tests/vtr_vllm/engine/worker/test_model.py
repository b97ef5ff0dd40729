"""The model as vLLM runs it: stock behaviour at full budget, and vLLM's features on reduced ones."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.vtr_vllm.engine import stock
from tests.vtr_vllm.engine.conftest import LAYERS, Engines
from tests.vtr_vllm.engine.support import Case, picture, tokens, words
from vtr_vllm.errors import RequestError

pytestmark = [pytest.mark.engine, pytest.mark.both_runners]

V2 = os.environ.get("VTR_TEST_RUNNER") == "v2"
TOKENS = 6 if V2 else 12  # a step takes long in Triton's interpreter
FULL = (1.0,) * LAYERS
HALF = (1.0, 1.0) + (0.5,) * (LAYERS - 2)


def mixed_batch() -> list[Case]:
    """16 full-budget requests: text, one image, two images; half of them say so explicitly."""
    kinds = [
        Case(words(1, 50)),
        Case(f"{words(2, 9)}<image>{words(3, 20)}", (picture(1),)),
        Case(f"{words(4, 9)}<image>{words(5, 5)}<image>{words(6, 9)}", (picture(2), picture(3))),
        Case(f"<image>{words(7, 70)}", (picture(4),)),
    ]
    asked = [replace(case, keep=FULL) for case in kinds]
    return [
        replace(case, text=case.text + words(10 + i, i))
        for i in range(2)
        for case in [*kinds, *asked]
    ]


def test_full_budget_gives_the_tokens_of_stock_vllm(engines: Engines, checkpoint: Path) -> None:
    cases = mixed_batch()
    plain = [replace(case, keep=None) for case in cases]
    llm = engines.get(model=checkpoint)
    got = llm.generate([c.prompt for c in cases], [c.params(TOKENS) for c in cases], use_tqdm=False)
    assert len(cases) == 16
    assert tokens(got) == stock.generate(checkpoint, plain, TOKENS)


def test_features_work_on_reduced_requests(engines: Engines, checkpoint: Path) -> None:
    """``n``, seeded sampling, stop strings and logprobs."""
    llm = engines.get(model=checkpoint)
    case = Case(f"{words(2, 9)}<image>{words(3, 20)}", (picture(1),), HALF, ("last",))

    def run(length: int = 6, **options: Any) -> Any:
        (output,) = llm.generate([case.prompt], [case.params(length, **options)], use_tqdm=False)
        return output.outputs

    greedy = run(12)[0]
    assert len(run(n=3, temperature=1.0, seed=1)) == 3
    assert [o.token_ids for o in run(n=2, temperature=1.0, seed=5)] == [
        o.token_ids for o in run(n=2, temperature=1.0, seed=5)
    ]
    stop = next(char for char in greedy.text[1:] if char.strip())
    assert stop not in run(12, stop=[stop])[0].text
    assert len(run(logprobs=2)[0].logprobs) == 6


@pytest.mark.skipif(
    V2,
    reason="Triton's interpreter does not take the mask type of vLLM's grammar kernel",
)
def test_structured_output_works_on_reduced_requests(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint)
    case = Case(f"{words(2, 9)}<image>{words(3, 20)}", (picture(1),), HALF, ("last",))
    params = case.params(
        12, ignore_eos=False, structured_outputs=StructuredOutputsParams(choice=["abc", "dcb"])
    )
    (output,) = llm.generate([case.prompt], [params], use_tqdm=False)
    assert output.outputs[0].text in ("abc", "dcb")


def test_abort_frees_everything(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint)
    core = llm.llm_engine.engine_core.engine_core
    pool = core.scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    case = Case(f"{words(2, 9)}<image>{words(3, 20)}", (picture(1),), HALF, ("last",))
    internal = [llm.llm_engine.add_request(str(i), case.prompt, case.params(50)) for i in range(3)]
    for _ in range(4):
        llm.llm_engine.step()
    assert pool.get_num_free_blocks() < free
    llm.llm_engine.abort_request([name or str(i) for i, name in enumerate(internal)])
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    llm.llm_engine.step()
    assert pool.get_num_free_blocks() == free
    assert not core.scheduler.reduced


def test_worker_says_what_it_loaded(engines: Engines, checkpoint: Path) -> None:
    (status,) = engines.get(model=checkpoint).collective_rpc("vtr_status")
    assert status["loaded"]
    assert status["layers"] == LAYERS
    assert json.dumps(status)


@pytest.mark.parametrize(
    ("options", "text", "named"),
    [
        ({"prompt_logprobs": 1}, "a<image>b", "prompt_logprobs"),
        ({}, "a<image>", "ends with a vision token"),
        ({}, "a" + "<image>b" * 4 + "c" * 600, "max_num_batched_tokens"),
    ],
)
def test_what_cannot_run_reduced_is_refused(
    options: dict[str, Any], text: str, named: str, engines: Engines, checkpoint: Path
) -> None:
    llm = engines.get(
        model=checkpoint, enable_prefix_caching=False, max_num_batched_tokens=512, max_num_seqs=8
    )
    images = tuple(picture(i) for i in range(text.count("<image>")))
    case = Case(text, images, HALF, ("last",), options)
    with pytest.raises(RequestError, match=named):
        llm.generate([case.prompt], [case.params(2)], use_tqdm=False)
    good = Case("a<image>b", (picture(1),), HALF, ("last",))
    assert len(tokens(llm.generate([good.prompt], [good.params(2)], use_tqdm=False))[0]) == 2
