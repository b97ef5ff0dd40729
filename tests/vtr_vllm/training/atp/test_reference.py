"""Dropping rows for good gives what training's mask gives, and what Transformers generates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from vtr_vllm.atp.artefact import Artefact, describe
from vtr_vllm.atp.facts import Facts
from vtr_vllm.atp.module import AtpModules, Masking, Shape, grid_scores
from vtr_vllm.errors import GeometryMismatch
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training.atp.masked_attention import MaskedPass
from vtr_vllm.training.atp.reference import Reference
from vtr_vllm.training.llava import Llava


def trained(llava: Llava, modules: AtpModules, folder: Path, n_min: int = 1) -> Artefact:
    """The modules as a training leaves them."""
    none = dict.fromkeys(("lora", "data", "options", "losses", "scores"))
    facts = describe(
        llava.checkpoint, llava.geometry, llava.grid, modules, n_min=n_min, target=0.5, **none
    )
    Artefact(modules, Facts(facts, folder)).save()
    return Artefact.load(folder)


@pytest.mark.parametrize("n_min", [1, 5])
def test_dropped_rows_equal_the_hard_mask_in_a_batch(
    llava: Llava, data: Dataset, modules: AtpModules, tmp_path: Path, n_min: int
) -> None:
    """Logits to 1e-5, in a batch padded to different lengths, and the same counts and tokens."""
    reference = Reference(llava, trained(llava, modules, tmp_path, n_min))
    examples = llava.examples(data)[:6]
    side = llava.batch(examples)
    masked = MaskedPass(modules, grid_scores(*llava.grid), side.rows, Masking("hard", n_min=n_min))
    with torch.no_grad():
        expected = llava.logits(side, masked)
        whole = llava.logits(side, None)
    seen = set()
    for number, example in enumerate(examples):
        mine = reference.logits(example)
        of = side.predicting[0] == number
        torch.testing.assert_close(mine, expected[of], atol=1e-5, rtol=1e-5)
        assert (mine - whole[of]).abs().max() > 1e-2, "something was dropped"
        answer = reference.answer(example.item, max_tokens=3)
        behind = [tuple(k.alive[number].nonzero()[:, 0].tolist()) for k in masked.kept[1:]]
        assert answer.kept == tuple(behind)
        a, b, c = (len(kept) for kept in behind)
        assert answer.counts == (16, a, a, b, c, c)
        assert 16 >= a >= b >= c >= n_min
        seen.add(answer.counts)
    assert len(seen) > 1, "counts differ from instance to instance"


def test_decoding_goes_on_where_the_prompt_ended(
    llava: Llava, data: Dataset, modules: AtpModules, tmp_path: Path
) -> None:
    """Token after token is what one pass over prompt and answer predicts."""
    reference = Reference(llava, trained(llava, modules, tmp_path))
    example = llava.examples(data)[1]
    said = reference.answer(example.item, max_tokens=5).tokens
    forced = reference.logits(dataclasses.replace(example, answer=said))
    assert forced.argmax(-1).tolist() == said


def test_without_drops_it_says_what_transformers_says(
    llava: Llava, data: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    untrained = AtpModules((1, 3), Shape(state=llava.state_width))
    reference = Reference(llava, trained(llava, untrained, tmp_path))
    example = llava.examples(data)[0]
    answer = reference.answer(example.item, max_tokens=4)
    assert answer.counts == (16,) * 6
    side = llava.batch([example], answers=False)
    ids = llava.model.generate(
        input_ids=side.ids, pixel_values=side.pixels, max_new_tokens=4, do_sample=False
    )
    assert answer.tokens == ids[0, side.ids.shape[1] :].tolist()


def test_modules_of_another_model_are_refused(
    llava: Llava, modules: AtpModules, tmp_path: Path
) -> None:
    artefact = trained(llava, modules, tmp_path)
    other = Facts(artefact.facts.values | {"grid": [5, 5]}, tmp_path)
    with pytest.raises(GeometryMismatch, match="5 x 5"):
        Reference(llava, dataclasses.replace(artefact, facts=other))
