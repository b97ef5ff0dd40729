"""Where each image's vision tokens are."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from vtr_vllm.engine.images import ImageTokens, image_tokens


def tower(kind="clip_vision_model", image_size=336, patch_size=14):
    vision = SimpleNamespace(model_type=kind, image_size=image_size, patch_size=patch_size)
    return SimpleNamespace(vision_config=vision)


def image(offset, length, is_embed=None):
    return MultiModalFeatureSpec(
        None, "image", str(offset), PlaceholderRange(offset, length, is_embed)
    )


def test_images_of_one_size_are_squares_of_patches():
    features = [image(700, 576), image(5, 576)]
    assert image_tokens(features, tower()) == (
        ImageTokens(0, 576, (24, 24)),
        ImageTokens(576, 576, (24, 24)),
    )


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (tower(), 577),  # the CLS token stays among them
        (tower("pixtral", 1024, 16), 4096),  # any shape of so many patches
        (SimpleNamespace(vision_config=None), 576),
        (SimpleNamespace(), 576),
    ],
)
def test_no_grid_where_there_is_none_to_know(config, length):
    assert image_tokens([image(0, length)], config) == (ImageTokens(0, length, None),)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), max_size=4))
def test_numbers_follow_the_prompt_without_gaps(masks):
    features = [image(i * 10, len(mask), torch.tensor(mask)) for i, mask in enumerate(masks)]
    images = image_tokens(features[::-1], tower())
    assert [found.tokens for found in images] == [sum(mask) for mask in masks]
    assert [found.first for found in images] == [
        sum(map(sum, masks[:i])) for i in range(len(masks))
    ]
