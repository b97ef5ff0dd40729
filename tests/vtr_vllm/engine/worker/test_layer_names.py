"""Whatever name compiled code asks by, the layer that runs answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from vllm.forward_context import ForwardContext, override_forward_context
from vllm.model_executor.layers.attention import attention

from tests.vtr_vllm.engine.conftest import LAYERS, Engines
from tests.vtr_vllm.engine.support import Case, picture, tokens, words
from vtr_vllm.engine.worker.decoder import ReducibleDecoder
from vtr_vllm.engine.worker.layer_names import LayerNames

PREFIX = "language_model.model.layers"
STOCK_FORWARD = ReducibleDecoder.forward


def test_the_names_of_all_layers_mean_the_one_that_runs() -> None:
    names = [f"{PREFIX}.{layer}.self_attn.attn" for layer in range(12)]
    experts = [f"{PREFIX}.{layer}.mlp.experts" for layer in range(1, 12)]
    modules = {name: object() for name in ["vision_tower.layers.0.attn", *names, *experts]}
    context = ForwardContext(no_compile_layers=modules, attn_metadata={}, slot_mapping={})
    step = cast(
        Any,
        SimpleNamespace(
            metadata={name: object() for name in names}, slots={name: object() for name in names}
        ),
    )
    known = LayerNames(names)
    with override_forward_context(context):
        for layer, name in enumerate(names):
            known.enter(layer, step)
            assert set(context.no_compile_layers) >= set(modules)
            for asked in names:
                assert context.no_compile_layers[asked] is modules[name]
                assert context.attn_metadata[asked] is step.metadata[name]
                assert context.slot_mapping[asked] is step.slots[name]
            if layer:
                mine = f"{PREFIX}.{layer}.mlp.experts"
                assert all(context.no_compile_layers[asked] is modules[mine] for asked in experts)
            assert (
                context.no_compile_layers["vision_tower.layers.0.attn"]
                is modules["vision_tower.layers.0.attn"]
            )


@pytest.mark.engine
@pytest.mark.both_runners
def test_a_first_name_that_is_compiled_in_changes_no_token(
    engines: Engines, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch before 2.13 compiles layers: all of them ask by the name of the first."""
    llm = engines.get(model=checkpoint)
    cases = [
        Case(
            words(seed, 20) + "<image>" + words(seed + 1, 30),
            (picture(seed),),
            (1.0, 1.0) + (0.5,) * (LAYERS - 5) + (0.2,) * 3,
            ("last", "instruction"),
        )
        for seed in (1, 2)
    ]
    # No prefix of an earlier run: its keys would hide what is written to the wrong place.
    asked: list[str] = []

    def run() -> list[Any]:
        llm.reset_prefix_cache()
        params = [case.params(8) for case in cases]
        return tokens(llm.generate([case.prompt for case in cases], params, use_tqdm=False))

    stock = attention._encode_layer_name
    expected = run()

    def forward(decoder: ReducibleDecoder, *args: Any, **kwargs: Any) -> torch.Tensor:
        def first(name: str) -> Any:
            asked.append(name)
            return stock(decoder.layer_names[0])

        with monkeypatch.context() as patch:
            patch.setattr(attention, "_encode_layer_name", first)
            return STOCK_FORWARD(decoder, *args, **kwargs)

    monkeypatch.setattr(ReducibleDecoder, "forward", forward)
    assert run() == expected
    assert len(set(asked)) == LAYERS
