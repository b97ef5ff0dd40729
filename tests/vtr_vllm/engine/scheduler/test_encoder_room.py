"""More encoded images than fit into a batch stay, where that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vtr_vllm.engine.conftest import Engines
from tests.vtr_vllm.engine.support import Case, picture, words
from vtr_vllm.engine.scheduler.encoder_room import keep_encoded

pytestmark = pytest.mark.engine


def test_encoded_images_stay(
    engines: Engines, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engines.get(model=checkpoint)
    engine = llm.llm_engine
    manager = engine.engine_core.engine_core.scheduler.encoder_cache_manager
    room = manager.cache_size
    model = engine.model_executor.driver_worker.get_model()
    embed, encoded = model.embed_multimodal, []

    def counting(**inputs):
        encoded.append(len(inputs["pixel_values"]))
        return embed(**inputs)

    monkeypatch.setattr(model, "embed_multimodal", counting)
    cases = [Case(f"{words(seed, 5)}<image>", (picture(seed),)) for seed in range(4)]

    def run():
        encoded.clear()
        for case in cases:
            llm.generate([case.prompt], [case.params(1)], use_tqdm=False)
        return sum(encoded)

    try:
        llm.llm_engine.reset_encoder_cache()
        run()
        (tokens,) = set(manager.num_embeds_by_hash.values())
        manager.cache_size = 3 * tokens  # one too few
        llm.llm_engine.reset_encoder_cache()
        assert (run(), run()) == (4, 4)
        assert keep_encoded(engine, 4 * tokens) == 4 * tokens
        assert keep_encoded(engine, tokens) == 4 * tokens
        assert (run(), run()) == (1, 0)  # only the one that was driven out
    finally:
        manager.cache_size = room
        llm.llm_engine.reset_encoder_cache()
