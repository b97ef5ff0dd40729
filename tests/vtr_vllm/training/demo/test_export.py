"""The exported folder: names that every loader knows, and the same weights again."""

from pathlib import Path

import torch
from safetensors import safe_open

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.training.demo.evaluate import load
from vtr_vllm.training.demo.export import export


def names(folder: Path) -> set[str]:
    """Return the tensor names of a folder's weights."""
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return set(weights.keys())


def test_the_packaged_names_are_the_classic_ones() -> None:
    found = names(CHECKPOINT)
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in found
    assert "language_model.model.embed_tokens.weight" in found
    assert "multi_modal_projector.linear_2.bias" in found
    assert {n.split(".")[1] for n in found if n.startswith("vision_tower")} == {"vision_model"}


def test_an_export_loads_as_what_was_exported(tmp_path: Path) -> None:
    model, _ = load(CHECKPOINT)
    export(model, tmp_path)
    again, processor = load(tmp_path)
    assert names(tmp_path) == names(CHECKPOINT)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name
    assert processor.chat_template
    for file in ("tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / file).read_text() == (CHECKPOINT / file).read_text()
