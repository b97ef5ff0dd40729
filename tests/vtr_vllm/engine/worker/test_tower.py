"""The CLS token's attention, carried in two columns of an image's embeddings."""

import pytest
import torch

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
