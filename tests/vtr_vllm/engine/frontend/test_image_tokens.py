"""Where each image's vision tokens are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2VLImageProcessor
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalSharedField,
    PlaceholderRange,
)

from vtr_vllm.engine.frontend.image_tokens import ImageTokens, image_tokens


def tower(kind="clip_vision_model", image_size=336, patch_size=14):
    vision = SimpleNamespace(model_type=kind, image_size=image_size, patch_size=patch_size)
    return SimpleNamespace(vision_config=vision)


def image(offset, length, is_embed=None, **data):
    fields = {
        name: MultiModalFieldElem(value, MultiModalSharedField(batch_size=1))
        for name, value in data.items()
    }
    return MultiModalFeatureSpec(
        MultiModalKwargsItem(fields) if fields else None,
        "image",
        str(offset),
        PlaceholderRange(offset, length, is_embed),
    )


MERGE = 2
ANY_SIZE = SimpleNamespace(
    model_type="qwen2_5_vl",
    vision_config=SimpleNamespace(model_type="qwen2_5_vl_vision", spatial_merge_size=MERGE),
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


@given(st.data())
def test_an_image_of_any_size_has_the_grid_of_its_merged_patches(data):
    """The token at (row, column) of the grid is that of the pixels there, by the real processor."""
    patch = 4
    side = patch * MERGE
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    size = {"shortest_edge": side**2, "longest_edge": 36 * side**2}
    processor = Qwen2VLImageProcessor(size=size, patch_size=patch, merge_size=MERGE)
    pixels = np.zeros((rows * side, columns * side, 3), np.uint8)
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    plain = processor(pixels, return_tensors="pt")
    pixels[row * side : (row + 1) * side, column * side : (column + 1) * side] = 255
    changed = processor(pixels, return_tensors="pt").pixel_values != plain.pixel_values
    feature = image(3, rows * columns, image_grid_thw=plain.image_grid_thw[0])
    (found,) = image_tokens([feature], ANY_SIZE)
    assert found == ImageTokens(0, rows * columns, (rows, columns))
    tokens = changed.any(-1).view(-1, MERGE**2).any(-1).nonzero().flatten().tolist()
    assert tokens == [row * columns + column]


@pytest.mark.parametrize(
    "feature",
    [
        image(0, 23, image_grid_thw=torch.tensor([1, 6, 16])),  # some tokens are left out
        image(0, 24),  # the engine has it, and no cache knows of it
    ],
)
def test_no_grid_for_a_part_of_an_image(feature):
    tokens = feature.mm_position.length
    assert image_tokens([feature], ANY_SIZE) == (ImageTokens(0, tokens, None),)


def test_a_video_has_the_grid_of_its_frames():
    (found,) = image_tokens([image(0, 24, video_grid_thw=torch.tensor([2, 6, 8]))], ANY_SIZE)
    assert found == ImageTokens(0, 24, (3, 4), frames=2)
    assert found.form == (2, 3, 4)
    assert ImageTokens(0, 24, None).form == (0, 0, 0)
