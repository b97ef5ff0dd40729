"""What trained ATP modules decide: against a reference in Transformers, one prompt at a time."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vtr_vllm.atp.made import made_for
from tests.vtr_vllm.engine.conftest import LAYERS, SHAPE, Engines
from tests.vtr_vllm.engine.support import Case, picture, tokens, words
from tests.vtr_vllm.engine.worker.test_adaptive_cuts import case
from tests.vtr_vllm.reduction.strategies import request_of
from vtr_vllm.engine.frontend.first_tokens import collect_first_tokens
from vtr_vllm.engine.frontend.rule_checks import check_rules
from vtr_vllm.engine.worker import modules
from vtr_vllm.engine.worker.modules import Modules
from vtr_vllm.errors import UnsupportedRequest
from vtr_vllm.schedules import RankRule, to_wire
from vtr_vllm.search.calibration import Dataset, Item
from vtr_vllm.training.atp.reference import Answer, Reference
from vtr_vllm.training.llava import Llava

pytestmark = [pytest.mark.engine, pytest.mark.both_runners]

V2 = os.environ.get("VTR_TEST_RUNNER") == "v2"
TOKENS = 3 if V2 else 12
LAYERS_CUT = (2, 4, 6)
UNBOUNDED = (1.0, 1.0, *[0.9999] * 2, *[0.9998] * 2, *[0.9997] * 2)
SIDE = round(SHAPE.vision_tokens**0.5)


@dataclass(frozen=True)
class Trained:
    """Modules whose thresholds lie in the midst of the scores, and questions."""

    folder: Path
    reference: Reference
    items: tuple[Item, ...]

    def prompt(self, item: Item) -> dict[str, Any]:
        llava = self.reference.llava
        asked = llava.example(item).prompt
        first = asked.index(llava.image_token)
        once = [*asked[: first + 1], *asked[first + llava.tokens :]]
        return {"prompt_token_ids": once, "multi_modal_data": {"image": item.load_images()}}

    def answers(self) -> list[Answer]:
        return [self.reference.answer(item, TOKENS) for item in self.items]


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("atp")
    llava = Llava.load(str(checkpoint))
    made_for(llava, folder, LAYERS_CUT)
    return Trained(folder, Reference.load(str(checkpoint), folder), questions(folder))


def questions(folder: Path) -> tuple[Item, ...]:
    lines = []
    for number in range(6):
        file = io.BytesIO()
        picture(number).save(file, "PNG")
        image = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        asked = words(number, 5 + 7 * number).strip() + "?"
        lines.append(json.dumps({"id": str(number), "image": image, "question": asked}) + "\n")
    path = folder / "questions.jsonl"
    path.write_text("".join(lines))
    return tuple(Dataset.load(path).items)


def engine(engines: Engines, checkpoint: Path, trained: Trained) -> Any:
    return engines.get(model=checkpoint, additional_config={"vtr": {"atp": str(trained.folder)}})


def params(keep: tuple[float, ...], *rules: str) -> Any:
    wire = to_wire(keep, [RankRule.parse(rule) for rule in rules])
    found = Case("", (), None).params(TOKENS, ignore_eos=False)
    found.extra_args = wire
    return found


def run(llm: Any, prompts: list[Any], asked: list[Any]) -> tuple[list[Any], list[Any]]:
    """(outputs, counts that the front end was told), by prompt."""
    before = int(llm.request_counter.counter)
    with collect_first_tokens() as first:
        outputs = llm.generate(prompts, asked, use_tqdm=False)
    return outputs, [first.counts(str(before + place)) for place in range(len(prompts))]


def test_tokens_and_counts_equal_the_reference_in_a_mixed_batch(
    engines: Engines, checkpoint: Path, trained: Trained
) -> None:
    llm = engine(engines, checkpoint, trained)
    others = [case(1, "last@0.5", "last@0.3"), case(2, "last", "last"), Case(words(9, 30))]
    items = trained.items[::3] if V2 else trained.items
    prompts = [trained.prompt(item) for item in items]
    asked = [params(UNBOUNDED, "atp", "atp", "atp") for _ in items]
    alone = tokens(
        run(llm, [each.prompt for each in others], [e.params(TOKENS) for e in others])[0]
    )
    mixed = [*prompts[:1], others[0].prompt, *prompts[1:], *(each.prompt for each in others[1:])]
    wanted = [
        asked[0],
        others[0].params(TOKENS),
        *asked[1:],
        *(e.params(TOKENS) for e in others[1:]),
    ]
    outputs, told = run(llm, mixed, wanted)
    expected = [trained.reference.answer(item, TOKENS) for item in items]
    own = [0, *range(2, len(items) + 1)]
    assert [told[place] for place in own] == [answer.counts for answer in expected]
    assert [tokens(outputs)[place] for place in own] == [answer.tokens for answer in expected]
    assert len({answer.counts for answer in expected}) == len(items), "instances differ"
    rest = [place for place in range(len(mixed)) if place not in own]
    assert [tokens(outputs)[place] for place in rest] == alone


@pytest.mark.skipif(V2, reason="the same code on both runners")
def test_a_schedule_bounds_what_modules_keep_or_states_it(
    engines: Engines, checkpoint: Path, trained: Trained
) -> None:
    """The best by their margins; counts that were found give, stated beforehand, the same tokens."""
    llm = engine(engines, checkpoint, trained)
    prompts = [trained.prompt(item) for item in trained.items]
    expected = trained.answers()
    keep = (1.0, 1.0, *[0.2] * 2, *[0.1] * 4)
    _, bounded = run(llm, prompts, [params(keep, "atp", "atp")] * len(prompts))
    most = [round(rate * SHAPE.vision_tokens + 1e-9) for rate in keep]
    for counts, answer in zip(bounded, expected, strict=True):
        assert all(count <= high for count, high in zip(counts, most, strict=True))
        assert counts[2] == min(answer.counts[2], most[2])
    fixed = []
    for answer in expected:
        rates = tuple(count / SHAPE.vision_tokens for count in answer.counts)
        cuts = [n for n in LAYERS_CUT if answer.counts[n] < answer.counts[n - 1]]
        fixed.append(params(rates, *["atp-fixed"] * len(cuts)))
    outputs, told = run(llm, prompts, fixed)
    assert told == [None] * len(prompts)
    assert tokens(outputs) == [answer.tokens for answer in expected]


@pytest.mark.skipif(V2, reason="the same code on both runners")
def test_what_modules_cannot_judge_is_refused(
    engines: Engines, checkpoint: Path, trained: Trained
) -> None:
    llm = engine(engines, checkpoint, trained)
    two = case(1, images=2).prompt
    with pytest.raises(UnsupportedRequest, match=r"2 images .* one image of 8x8"):
        llm.generate(two, params(UNBOUNDED, "atp", "atp", "atp"))
    with pytest.raises(UnsupportedRequest, match="without a LoRA adapter"):
        check_rules(
            request_of([range(64)], 70, UNBOUNDED, ["atp"] * 3),
            llm.llm_engine.vllm_config,
            adapted=True,
        )
    elsewhere = (1.0,) * 3 + (0.5,) * 5
    with pytest.raises(UnsupportedRequest, match=r"before layer 3, .* before layers 2, 4, 6"):
        llm.generate(trained.prompt(trained.items[0]), params(elsewhere, "atp"))
    without = engines.get(model=checkpoint)
    with pytest.raises(UnsupportedRequest, match="started without"):
        without.generate(trained.prompt(trained.items[0]), params(UNBOUNDED, "atp", "atp", "atp"))


def test_margins_are_of_rows_and_padding_is_nobody(trained: Trained) -> None:
    """Whatever rows a table has, a request's scores are its tokens'."""
    judge = Modules(trained.reference.artefact, torch.device("cpu"))
    torch.manual_seed(1)
    heads, width = 2, trained.reference.llava.state_width
    order = torch.arange(SHAPE.vision_tokens)[::2]
    tokens_of = torch.cat([torch.full((3,), -1), order, torch.full((5,), -1)])
    looks = torch.rand(2, 1, len(tokens_of))
    values = torch.rand(1, heads, width // heads)
    alone = judge.score(2, tokens_of[None], looks, values)
    longer = torch.cat([tokens_of, torch.full((4,), -1)])
    more = torch.cat([looks, torch.rand(2, 1, 4)], dim=-1)
    table = torch.stack([longer, longer.flip(0)])
    both = judge.score(2, table, torch.cat([more, more.flip(-1)], dim=1), values.repeat(2, 1, 1))
    is_vision = tokens_of >= 0
    torch.testing.assert_close(both[0, : len(tokens_of)][is_vision], alone[0][is_vision])
    torch.testing.assert_close(both[1].flip(0)[: len(tokens_of)][is_vision], alone[0][is_vision])
    assert SHAPE.vision_tokens == SIDE * SIDE
    assert LAYERS == 8


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_values_of_all_heads_are_shown_on_every_rank(
    monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """Of two heads; four ranks hold each of them twice."""
    whole = torch.arange(2 * 2 * 3.0).view(2, 2, 3)  # [A, heads, width]
    repeated = whole.repeat_interleave(max(1, ranks // 2), dim=1)
    own = repeated.split(max(1, 2 // ranks), dim=1)
    monkeypatch.setattr(modules, "get_tensor_model_parallel_world_size", lambda: ranks)
    monkeypatch.setattr(
        modules, "tensor_model_parallel_all_gather", lambda part, dim: torch.cat(own, dim)
    )
    for part in own:
        assert torch.equal(modules._of_all_ranks(part, 6), whole.flatten(1))
