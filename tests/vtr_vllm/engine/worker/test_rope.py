"""Rotary positions taken back out, against the rotations that vLLM itself applies."""

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope

from vtr_vllm.engine.worker.rope import unrotate

HEAD_DIM, LONGEST = 32, 2048
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture(scope="module")
def vllm_config():
    with set_current_vllm_config(VllmConfig()):
        yield


@pytest.mark.parametrize("neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"partial_rotary_factor": 0.5},
        {"partial_rotary_factor": 0.25, "rope_theta": 1e6},
        {"rope_type": "linear", "factor": 4.0},
        YARN,
        LLAMA3,
    ],
    ids=["plain", "half", "quarter", "linear", "yarn", "llama3"],
)
def test_it_inverts_the_rotation(vllm_config, parameters, neox):
    rotary = get_rope(HEAD_DIM, LONGEST, neox, parameters, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    # Positions of a prompt whose tokens were partly dropped: they skip.
    positions = torch.randint(0, LONGEST, (50,), generator=draw).sort().values
    query = torch.randn(50, 4, HEAD_DIM, generator=draw)
    key = torch.randn(50, 2, HEAD_DIM, generator=draw)
    turned = rotary.forward_native(positions, query.flatten(1).clone(), key.flatten(1).clone())
    for plain, rotated in zip((query, key), turned, strict=True):
        rotated = rotated.view(plain.shape)
        assert (rotated - plain).abs().max() > 0.1
        back = unrotate(rotary, positions, rotated)
        assert back.dtype == torch.float32
        torch.testing.assert_close(back, plain, rtol=0, atol=1e-5)


def test_yarn_scales_and_the_scale_comes_out_again(vllm_config):
    rotary = get_rope(HEAD_DIM, LONGEST, True, YARN, dtype=torch.float32)
    vector = torch.ones(1, 1, HEAD_DIM)
    start = torch.tensor([0])  # no rotation at position 0: only the factor is left
    (turned, _) = rotary.forward_native(start, vector.flatten(1).clone(), vector.flatten(1).clone())
    assert turned[0, 0] > 1.05
    torch.testing.assert_close(unrotate(rotary, start, turned.view(vector.shape)), vector)


def test_no_keys(vllm_config):
    """An empty prefix, as of a request that starts at its first token."""
    rotary = get_rope(HEAD_DIM, LONGEST, dtype=torch.float32)
    empty = torch.empty(0, 2, HEAD_DIM)
    assert unrotate(rotary, torch.arange(0), empty).shape == empty.shape


@pytest.mark.parametrize("interleaved", [False, True], ids=["sections", "interleaved"])
def test_it_inverts_a_rotation_by_time_height_and_width(vllm_config, interleaved):
    parameters = {"mrope_section": [4, 6, 6], "mrope_interleaved": interleaved}
    rotary = get_rope(HEAD_DIM, LONGEST, True, parameters, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    positions = torch.randint(0, LONGEST, (3, 50), generator=draw)
    plain = torch.randn(50, 4, HEAD_DIM, generator=draw)
    rotated, _ = rotary.forward_native(
        positions, plain.flatten(1).clone(), plain.flatten(1).clone()
    )
    torch.testing.assert_close(
        unrotate(rotary, positions, rotated.view(plain.shape)), plain, rtol=0, atol=1e-5
    )


def test_text_has_the_same_place_on_all_three_axes(vllm_config):
    """A cached prefix of text is unrotated by its plain positions."""
    rotary = get_rope(HEAD_DIM, LONGEST, True, {"mrope_section": [4, 6, 6]}, dtype=torch.float32)
    vectors, places = torch.randn(50, 2, HEAD_DIM), torch.arange(50)
    torch.testing.assert_close(
        unrotate(rotary, places, vectors), unrotate(rotary, places.expand(3, -1), vectors)
    )
