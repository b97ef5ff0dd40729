"""From vLLM's view of a request to ours. The same function in every process, so all agree."""

from collections.abc import Mapping, Sequence

import numpy as np
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vtr_vllm.reduction.request import IntArray, ReducedRequest, reduced_request
from vtr_vllm.schedules import make_plan, parse_floor, parse_trace, parse_wire

TraceCuts = list[tuple[int, list[int]]]
"""(cut layer, vision-token numbers that are seen from there on, ascending), by depth."""


VISION = ("image", "video")
"""The modalities whose tokens can be dropped. To vLLM, a prompt_embeds part of a chat is a multimodal item
too; to us it is text."""


def vision_items(features: Sequence[MultiModalFeatureSpec]) -> list[MultiModalFeatureSpec]:
    """The images and videos as they stand in the prompt, without items of other modalities."""
    items = [feature for feature in features if feature.modality in VISION]
    return sorted(items, key=lambda feature: feature.mm_position.offset)


def vision_span(feature: MultiModalFeatureSpec) -> IntArray:
    """Positions of an image's or video's tokens in the prompt, ascending."""
    position = feature.mm_position
    if position.is_embed is None:
        indices = np.arange(position.length, dtype=np.int64)
    else:
        indices = np.flatnonzero(position.is_embed.numpy()).astype(np.int64)
    return indices + position.offset


def read_request(
    extra_args: Mapping[str, object] | None,
    features: Sequence[MultiModalFeatureSpec] | None,
    prompt_token_ids: Sequence[int] | None,
    num_layers: int,
) -> ReducedRequest | None:
    """The request's plan and prompt facts; None when it runs unreduced.

    It runs unreduced when it asks for nothing, when it has no vision tokens, and when its
    schedule keeps them all. Raises RequestError when what it carries is malformed.
    """
    asked = parse_wire(extra_args or {}, num_layers)
    floor = parse_floor(extra_args or {})
    trace = parse_trace(extra_args or {})
    items = vision_items(features or ())
    if asked is None or not items or prompt_token_ids is None:
        return None
    spans = [vision_span(item) for item in items]
    plan = make_plan(*asked, n_vision=sum(len(span) for span in spans))
    if not plan.reduces:
        return None
    return reduced_request(plan, spans, prompt_token_ids, trace, floor)
