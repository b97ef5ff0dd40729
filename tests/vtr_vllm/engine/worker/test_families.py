"""Classes of supported architectures, made when they are asked for."""

import pytest

from vtr_vllm.engine.common.supported_models import CLS_ARCHITECTURES, SUPPORTED_ARCHITECTURES
from vtr_vllm.engine.worker import families
from vtr_vllm.engine.worker.tower import ClsReductionMixin


def test_a_class_is_made_once() -> None:
    assert families.LlavaForConditionalGeneration is families.LlavaForConditionalGeneration
    assert families.LlavaForConditionalGeneration.__name__ == "ReducedLlavaForConditionalGeneration"


def test_only_what_is_in_the_table_is_made() -> None:
    with pytest.raises(AttributeError, match="LlamaForCausalLM"):
        families.LlamaForCausalLM  # noqa: B018


def test_vllm_names_more_than_one_architecture_after_a_class() -> None:
    found = families.stock_class("InternVLForConditionalGeneration")
    assert found.__name__ == "InternS1ForConditionalGeneration"


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_only_patches_of_one_tower_are_ranked_by_its_cls_token(architecture: str) -> None:
    ours = getattr(families, architecture)
    assert issubclass(ours, ClsReductionMixin) == (architecture in CLS_ARCHITECTURES)
