"""Every family: stock vLLM at full budget, the independent reference below it, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import LLM

from tests.families.capture import Prompt, capture, decoder_of
from tests.families.cases import CURVES, V2, FamilyCase, full_budget, reduced, requests, text_only
from tests.families.family import Family
from tests.families.reference import Reference
from tests.families.stock import Job, Stock
from tests.families.table import FAMILIES
from tests.vtr_vllm.engine.conftest import Engines
from tests.vtr_vllm.engine.support import logits, tokens
from vtr_vllm.schedules import RankRule, make_plan, see_no_question

pytestmark = pytest.mark.engine

TOLERANCE = 1e-3
CLEAR = 2e-4
"""Least margin of a choice, as a share of the score: far above what fp32 leaves in doubt."""
TOKENS = 4 if V2 else 8
USED = (0, 1, 2) if V2 else range(len(CURVES))


@dataclass(frozen=True)
class Loaded:
    """A family's checkpoint in an engine and in the reference."""

    family: Family
    llm: LLM
    reference: Reference
    layers: int

    def run(self, cases: list[FamilyCase], max_tokens: int, **options: Any) -> list[Any]:
        prompts = [case.prompt for case in cases]
        params = [case.params(max_tokens, **options) for case in cases]
        outputs: list[Any] = self.llm.generate(prompts, params, use_tqdm=False)
        return outputs


def engine_arguments(family: Family) -> dict[str, Any]:
    limits = {"image": 3, "video": 1} if family.video else {"image": 3}
    return {"limit_mm_per_prompt": limits, **family.engine}


def _param(family: Family) -> Any:
    marks = () if family.quick and not V2 else (pytest.mark.families,)
    return pytest.param(family, id=family.name, marks=marks)


@pytest.fixture(scope="module")
def checkpoints(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folder of every family that this run is about."""
    folders = {}
    for item in request.session.items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("loaded")
        if isinstance(family, Family) and family.name not in folders:
            folders[family.name] = tmp_path_factory.mktemp(family.name)
            family.write(folders[family.name])
    return folders


@pytest.fixture(scope="module")
def stock(checkpoints: dict[str, Path]) -> Iterator[Stock]:
    jobs = [
        Job(
            family.name,
            checkpoints[family.name],
            [replace(case, keep=None) for case in full_budget(family, 0)],
            TOKENS,
            engine_arguments(family),
        )
        for family in FAMILIES
        if family.name in checkpoints
    ]
    process = Stock(jobs)
    yield process
    process.close()


@pytest.fixture(scope="module", params=[_param(family) for family in FAMILIES])
def loaded(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Iterator[Loaded]:
    family: Family = request.param
    folder = checkpoints[family.name]
    reference = Reference(family.language_model(folder))
    layers = len(reference.model.layers)
    engines = Engines()
    llm = engines.get(
        model=folder,
        additional_config={"vtr": {"bands": layers // 2}},
        **engine_arguments(family),
    )
    yield Loaded(family, llm, reference, layers)
    engines.close()


def test_full_budget_gives_the_tokens_of_stock_vllm(loaded: Loaded, stock: Stock) -> None:
    cases = full_budget(loaded.family, loaded.layers)
    got = tokens(loaded.run(cases, TOKENS))
    assert got == stock.tokens(loaded.family.name)
    assert len({token for answer in got for token in answer}) > 3, "a model that says one thing"


def test_vision_tokens_are_those_that_vllm_merges(loaded: Loaded) -> None:
    """The scheduler's map, the worker's, and the rows that really differ from text."""
    (model,) = loaded.llm.apply_model(lambda model: model)
    assert model.config.architectures == [loaded.family.architecture]
    assert type(decoder_of(model)).__name__ == loaded.family.decoder
    (status,) = loaded.llm.collective_rpc("vtr_status")
    assert (status["loaded"], status["runner"]) == (True, "v2" if V2 else "v1")
    assert (status["layers"], status["bands"]) == (loaded.layers, loaded.layers // 2)
    scheduler = loaded.llm.llm_engine.engine_core.engine_core.scheduler
    for number, case in enumerate(requests(loaded.family, 3)):
        prompt = capture(loaded.llm, case.prompt)
        rows = (prompt.embeddings != prompt.text_embeddings).any(-1)
        assert rows.nonzero().squeeze(1).tolist() == prompt.vision.tolist()
        keep = (1.0, 1.0, *[0.5] * (loaded.layers - 2))
        asked = replace(case, keep=keep, rules=("last",))
        loaded.llm.llm_engine.add_request(str(number), asked.prompt, asked.params(1))
        (found,) = scheduler.reduced.values()
        assert found.vision.tolist() == prompt.vision.tolist()
        assert found.parts[0].image_sizes == prompt.items
        while loaded.llm.llm_engine.has_unfinished_requests():
            loaded.llm.llm_engine.step()


def test_reduced_runs_equal_the_reference(loaded: Loaded) -> None:
    """One mixed batch, reduced, full and text: every logit within 1e-3 of the largest."""
    chosen = [clear_case(loaded, number) for number in USED]
    for case in (text_only(5), requests(loaded.family, 6)[1]):
        chosen.append((case, capture(loaded.llm, case.prompt)))
    loaded.llm.reset_prefix_cache()
    outputs = loaded.run([case for case, _ in chosen], TOKENS, logprobs=-1)
    for (case, prompt), output in zip(chosen, outputs, strict=True):
        compare(loaded, case, prompt, output)
    case, prompt = chosen[0]
    (warm,) = loaded.run([case], TOKENS, logprobs=-1)
    assert 0 < warm.num_cached_tokens <= int(prompt.vision[0])
    compare(loaded, case, prompt, warm)


def clear_case(loaded: Loaded, number: int) -> tuple[FamilyCase, Prompt]:
    """The first request under a curve of which every cut is clear: a tie would compare noise."""
    margins = []
    for case in reduced(loaded.family, loaded.layers, number):
        prompt = capture(loaded.llm, case.prompt)
        counts, rules, of_items = plan(case, prompt)
        run = loaded.reference.run(prompt, counts, rules, of_items=of_items)
        if all(margin > CLEAR for margin in run.margins.values()):
            return case, prompt
        margins.append(run.margins)
    raise AssertionError(f"every request under curve {number} has a tie: {margins}")


def plan(
    case: FamilyCase, prompt: Prompt
) -> tuple[list[int], dict[int, str], list[tuple[int, ...]] | None]:
    """Tokens that each layer keeps, the rule of each cut, and of a local schedule each item's counts."""
    assert case.keep is not None
    asked = [RankRule.parse(rule) for rule in case.rules]
    if see_no_question(asked):
        plans = [make_plan(case.keep, asked, tokens) for tokens in prompt.items]
        rules = {
            cut: str(rule)
            for each in plans
            for cut, rule in zip(each.cuts, each.rules, strict=True)
        }
        own = [each.counts for each in plans]
        return [sum(counts) for counts in zip(*own, strict=True)], rules, own
    made = make_plan(case.keep, asked, len(prompt.vision))
    rules = {cut: str(rule) for cut, rule in zip(made.cuts, made.rules, strict=True)}
    return list(made.counts), rules, None


def compare(loaded: Loaded, case: FamilyCase, prompt: Prompt, output: Any) -> None:
    """Every logit of the answer beside the reference's, which is not what full budget gives."""
    full = [len(prompt.vision)] * loaded.layers
    counts, rules, of_items = plan(case, prompt) if case.keep else (full, {}, None)
    generated = list(output.outputs[0].token_ids)[:-1]
    want = loaded.reference.run(prompt, counts, rules, generated, of_items).logits.numpy()
    got = logits(output, want.shape[-1])
    assert difference(got, want) <= TOLERANCE, (case.keep, case.rules)
    if rules:
        other = loaded.reference.run(prompt, full, {}, generated).logits.numpy()
        assert difference(other, want) > 10 * TOLERANCE, "nothing to see of the cuts"


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest, as a share of the largest logit; NaN where a logit is missing."""
    return float(np.abs(one - other).max() / np.abs(other).max())
