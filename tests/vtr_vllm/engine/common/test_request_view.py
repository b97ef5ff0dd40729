"""vLLM's view of a request read as ours."""

import dataclasses

import pytest
import torch
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.common.request_view import (
    read_request,
    vision_items,
    vision_span,
    vision_units,
)
from vtr_vllm.errors import RequestError, UnsupportedRequest

ASKED = {"vtr_keep": [1.0, 1.0, 0.5, 0.25], "vtr_rules": ["last", "previous"]}
PROMPT = list(range(100, 112))
BANDS = LayerBands(4, (0, 2))


def image(offset, length, is_embed=None):
    mask = None if is_embed is None else torch.tensor(is_embed, dtype=torch.bool)
    return MultiModalFeatureSpec(
        data=None,
        modality="image",
        identifier=f"image at {offset}",
        mm_position=PlaceholderRange(offset, length, mask),
    )


def test_spans_follow_the_masks_and_the_prompt():
    features = [
        image(20, 5, [0, 1, 1, 0, 1]),  # rows of patches with a separator token between them
        image(3, 2),
        image(8, 4, [1, 1, 1, 1]),
    ]
    spans = [vision_span(feature) for feature in vision_items(features)]
    assert [span.tolist() for span in spans] == [[3, 4], [8, 9, 10, 11], [21, 22, 24]]
    assert {str(span.dtype) for span in spans} == {"int64"}


def test_a_reduced_request():
    features = [image(7, 3, [1, 0, 1]), image(2, 2)]
    request = read_request(ASKED, features, PROMPT, BANDS)
    assert request.vision.tolist() == [2, 3, 7, 9]
    assert request.parts[0].image_sizes == [2, 2]
    assert request.prompt_len == 12
    assert request.plan.counts == (4, 4, 2, 1)
    assert request.trace is None
    assert read_request(ASKED | {"vtr_trace": "t"}, features, PROMPT, BANDS).trace == "t"
    assert [str(rule) for rule in request.plan.rules] == ["last", "previous"]
    assert request.per_image_floor == 0.0
    fair = read_request(ASKED | {"vtr_floor": 1}, features, PROMPT, BANDS)
    assert (fair.per_image_floor, fair.floors(2)) == (1.0, (1, 1))


@pytest.mark.parametrize(
    ("extra_args", "features", "prompt"),
    [
        (None, [image(2, 4)], PROMPT),
        ({}, [image(2, 4)], PROMPT),
        ({"somebody_else": 1}, [image(2, 4)], PROMPT),
        (ASKED, None, PROMPT),
        (ASKED, [], PROMPT),
        (ASKED, [image(2, 4)], None),
        ({"vtr_keep": [1.0] * 4, "vtr_rules": []}, [image(2, 4)], PROMPT),
        (ASKED, [image(2, 2, [0, 0])], PROMPT),
        ({"vtr_keep": [1, 1, 0.99, 0.99], "vtr_rules": ["last"]}, [image(2, 4)], PROMPT),
    ],
    ids=[
        "no extra_args",
        "empty",
        "other keys",
        "text only",
        "no images",
        "prompt embeddings",
        "keeps all",
        "no vision tokens",
        "rounds to all",
    ],
)
def test_what_runs_unreduced(extra_args, features, prompt):
    assert read_request(extra_args, features, prompt, BANDS) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vtr_keep": [1.0] * 5}, "4 layers"),
        ({"vtr_keep": [1.0, 1.0, 0.25, 0.5]}, "never rise"),
        ({"vtr_keep": "0.5"}, "must be a list"),
        ({"vtr_rules": ["lust", "previous"]}, "lust"),
        ({"vtr_rules": ["last"]}, "1 rank rules for 2 cuts"),
        ({"vtr_budget": 0.5}, "vtr_budget"),
        ({"vtr_trace": ""}, "vtr_trace"),
        ({"vtr_floor": 2}, "vtr_floor"),
        ({"vtr_rules": ["last@2", "previous"]}, "share"),
    ],
)
def test_what_is_malformed_is_refused_with_images_and_without(change, said):
    for features in ([image(2, 4)], None):
        with pytest.raises(RequestError, match=said):
            read_request(ASKED | change, features, PROMPT, BANDS)


def test_a_floor_beside_an_adaptive_cut_is_refused():
    asked = ASKED | {"vtr_rules": ["last@0.5", "previous"]}
    found = read_request(asked, [image(2, 4)], PROMPT, BANDS)
    assert found.is_adaptive
    assert not found.is_local
    with pytest.raises(
        RequestError,
        match=r"last@0.5 says how many tokens stay, .* leave the floor out, or rank by last",
    ):
        read_request(asked | {"vtr_floor": 0.5}, [image(2, 4)], PROMPT, BANDS)


def test_half_of_the_pair_is_refused():
    with pytest.raises(RequestError, match="no vtr_rules"):
        read_request({"vtr_keep": ASKED["vtr_keep"]}, [image(2, 4)], PROMPT, BANDS)


def test_an_image_at_the_very_end_is_refused():
    with pytest.raises(UnsupportedRequest, match="ends with a vision token"):
        read_request(ASKED, [image(8, 4)], PROMPT, BANDS)
    # The last placeholder is no vision token: there is text to ask with.
    assert read_request(ASKED, [image(7, 5, [1, 1, 1, 1, 0])], PROMPT, BANDS) is not None


def test_only_images_and_videos_are_vision():
    """A prompt_embeds part of a chat is a multimodal item to vLLM; it is text to us."""
    part = dataclasses.replace(image(0, 2), modality="prompt_embeds")
    sound = dataclasses.replace(image(10, 1), modality="audio")
    film = dataclasses.replace(image(6, 3), modality="video")
    features = [part, image(3, 2), film, sound]
    assert vision_items(features) == [image(3, 2), film]
    request = read_request(ASKED, features, PROMPT, BANDS)
    assert request.vision.tolist() == [3, 4, 6, 7, 8]
    assert request.parts[0].image_sizes == [2, 3]
    assert request.first_vision == 3
    assert read_request(ASKED, [part, sound], PROMPT, BANDS) is None
    last = dataclasses.replace(image(11, 1), modality="prompt_embeds")
    assert read_request(ASKED, [image(3, 2), last], PROMPT, BANDS) is not None, (
        "it asks, as text does"
    )


LOCAL = {"vtr_keep": [1.0, 1.0, 0.5, 0.5], "vtr_rules": ["saliency"]}


def test_a_local_request_has_a_part_for_each_image():
    request = read_request(LOCAL, [image(7, 4, [1, 0, 1, 1]), image(2, 4)], PROMPT, BANDS)
    assert request.is_local
    assert [(part.start, part.end, part.plan.counts) for part in request.parts] == [
        (2, 6, (4, 4, 2, 2)),
        (7, 11, (3, 3, 2, 2)),
    ]
    seeds = {unit.seed for part in request.parts for unit in part.units}
    again = read_request(LOCAL, [image(2, 4)], PROMPT, BANDS)
    assert len(seeds) == 2
    assert again.parts[0].units[0].seed in seeds, "of the image, whatever stands beside it"


@pytest.mark.parametrize(
    "change",
    [
        {"vtr_keep": [1.0, 1.0, 0.5, 0.25], "vtr_rules": ["saliency", "previous"]},  # in a band
        {"vtr_rules": ["last"]},
        {"vtr_keep": [0.5, 0.5, 0.25, 0.25], "vtr_rules": ["saliency", "last"]},
    ],
)
def test_what_is_not_local(change):
    assert not read_request(LOCAL | change, [image(2, 4)], PROMPT, BANDS).is_local


def test_previous_repeats_a_rule_that_sees_no_question():
    asked = {"vtr_keep": [0.5, 0.5, 0.25, 0.25], "vtr_rules": ["cls", "previous"]}
    assert read_request(asked, [image(2, 8)], PROMPT, BANDS).is_local


def test_a_local_request_that_keeps_all_runs_unreduced():
    assert read_request(LOCAL, [image(2, 1), image(5, 1)], PROMPT, BANDS) is None


def units(*items, **options):
    made = vision_units(items, **options)
    return [(unit.vision.tolist(), unit.grid) for unit in made]


def test_units_are_images_and_frames():
    video = dataclasses.replace(image(2, 6), modality="video")
    apart = dataclasses.replace(image(2, 6, [1, 1, 0, 0, 1, 1]), modality="video")
    both = [2, 3, 4], [5, 6, 7]
    assert units(video) == [([*both[0], *both[1]], None)], "frames that nobody knows"
    assert units(video, forms=[(2, 1, 3)]) == [(both[0], (1, 3)), (both[1], (1, 3))]
    assert units(video, forms=[(2, 1, 3)], frames=False) == [([*both[0], *both[1]], None)]
    assert units(video, forms=[(4, 1, 3)]) == [([*both[0], *both[1]], None)], "six are not four"
    assert units(apart) == [([2, 3], None), ([6, 7], None)]
    assert units(image(2, 6), forms=[(1, 2, 3)]) == [([*both[0], *both[1]], (2, 3))]
    assert units(image(2, 6, [1, 1, 0, 0, 1, 1])) == [([2, 3, 6, 7], None)]
    seeds = [unit.seed for unit in vision_units([video], [(2, 1, 3)])]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("value", [[1, 2], "123", [1, 2, True], [1, 2, 3.0], (1, 2, 3)])
def test_forms_that_no_front_end_wrote_are_refused(value):
    with pytest.raises(RequestError, match="vtr_units"):
        read_request(LOCAL | {"vtr_units": value}, [image(2, 4)], PROMPT, BANDS)
