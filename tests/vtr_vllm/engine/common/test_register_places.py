"""What stands in a prompt for an image of a checkpoint with registers; on engines: ``test_registers``."""

from types import SimpleNamespace

import pytest
from vllm.multimodal.processing import PromptReplacement

from vtr_vllm.engine.common.register_places import leave_places
from vtr_vllm.errors import ConfigurationError


class Processor:
    def _get_prompt_updates(self, sizes):
        return [PromptReplacement("image", [7], lambda item: [7] * sizes[item])]


def processor_of(hf_config):
    stock = SimpleNamespace(
        processor=lambda info, dummy_inputs: Processor(), info=None, dummy_inputs=None
    )
    model = leave_places(type("Model", (), {"_processor_factory": stock}))
    info = SimpleNamespace(ctx=SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config)))
    return model._processor_factory.processor(info, None)


def places(processor, sizes):
    (update,) = processor._get_prompt_updates(sizes)
    assert (update.modality, update.target) == ("image", [7])
    return [update.replacement(item) for item in range(len(sizes))]


def config(**more):
    vision = SimpleNamespace(model_type="clip_vision_model")
    llava = ["LlavaForConditionalGeneration"]
    return SimpleNamespace(architectures=llava, vision_config=vision, **more)


def test_registers_follow_each_image():
    assert places(processor_of(config(vtr_registers=2)), [3, 1]) == [[7] * 5, [7] * 3]


def test_other_checkpoints_stay_as_they_are():
    processor = processor_of(config())
    assert type(processor) is Processor
    assert places(processor, [3, 1]) == [[7] * 3, [7]]


def test_registers_in_a_model_that_cannot_have_them():
    with pytest.raises(ConfigurationError, match="vtr_registers"):
        processor_of(SimpleNamespace(vtr_registers=2))
