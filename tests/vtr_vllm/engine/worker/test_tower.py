"""The CLS token's attention, carried in two columns of an image's embeddings."""

import pytest
import torch
from vllm.model_executor.models import clip
from vllm.model_executor.models.interfaces import supports_encoder_cudagraph

from vtr_vllm.engine.common.supported_models import CLS_ARCHITECTURES
from vtr_vllm.engine.worker.families import stock_class
from vtr_vllm.engine.worker.tower import attach, detach

HIDDEN = 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_comes_back_closer_than_the_type_of_the_embeddings(dtype):
    images = torch.randn(2, 5, HIDDEN).to(dtype)
    attention = torch.rand(2, 5)
    widened = attach(images, [attention])
    assert [image.shape for image in widened] == [(5, HIDDEN + 2)] * 2
    plain, read = detach(widened, HIDDEN)
    assert torch.equal(torch.stack(plain), images)
    assert torch.allclose(read, attention.flatten(), rtol=1e-4)


def test_what_no_tower_saw_has_no_attention_and_loses_nothing():
    """Images that came as embeddings, and the prompt_embeds part of a chat, which vLLM does not ask us
    about and so has no columns."""
    image, part = torch.randn(5, HIDDEN), torch.randn(3, HIDDEN)
    seen = attach([image], [torch.ones(1, 5)])
    unseen = attach([image], [])
    plain, read = detach([part, *seen, part, *unseen], HIDDEN)
    for item, expected in zip(plain, (part, image, part, image), strict=True):
        assert torch.equal(item, expected)
    known = torch.isfinite(read).tolist()
    assert known == [False] * 3 + [True] * 5 + [False] * 3 + [False] * 5


@pytest.mark.parametrize("architecture", CLS_ARCHITECTURES)
def test_a_tower_that_is_read_is_neither_replayed_nor_compiled(architecture):
    """A CUDA graph or compiled code of it would pass by the hook, and by ``embed_multimodal``."""
    stock = stock_class(architecture)
    assert not supports_encoder_cudagraph(stock)
    assert supports_encoder_cudagraph(stock_class("Qwen2_5_VLForConditionalGeneration"))
    assert "support_torch_compile" not in vars(clip)
