from types import SimpleNamespace

import pytest

from vtr_vllm.engine.common.registers import registers_of
from vtr_vllm.errors import ConfigurationError


def config(count, architecture="LlavaForConditionalGeneration", tower="clip_vision_model"):
    vision = SimpleNamespace(model_type=tower)
    return SimpleNamespace(vtr_registers=count, architectures=[architecture], vision_config=vision)


def test_most_checkpoints_have_none():
    assert registers_of(SimpleNamespace()) == 0
    assert registers_of(config(0, "Qwen2VLForConditionalGeneration")) == 0


def test_how_many_there_are():
    assert registers_of(config(8)) == 8
    assert registers_of(config(8, tower="siglip_vision_model")) == 8


@pytest.mark.parametrize("count", [-1, 1025, 2.0, "8", True, None])
def test_anything_but_a_count_is_refused(count):
    with pytest.raises(ConfigurationError, match="whole number from 0 to 1024"):
        registers_of(config(count))


@pytest.mark.parametrize(
    "other", [{"architecture": "InternVLChatModel"}, {"tower": "pixtral"}, {"tower": None}]
)
def test_models_that_we_know_no_place_in_are_refused(other):
    with pytest.raises(ConfigurationError, match="registers are served in LlavaFor"):
        registers_of(config(8, **other))
