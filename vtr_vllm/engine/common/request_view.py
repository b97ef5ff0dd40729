"""From vLLM's view of a request to ours. The same function in every process, so all agree."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.errors import RequestError
from vtr_vllm.reduction.request import (
    IntArray,
    ReducedRequest,
    Unit,
    guided_request,
    local_request,
)
from vtr_vllm.schedules import (
    adaptive_rules,
    cut_layers,
    cuts_inside_bands,
    make_plan,
    of_one_image,
    parse_floor,
    parse_trace,
    parse_units,
    parse_wire,
    see_no_question,
)

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
    bands: LayerBands,
) -> ReducedRequest | None:
    """The request's plan and prompt facts; None when it runs unreduced.

    It runs unreduced when it asks for nothing, when it has no vision tokens, and when its
    schedule keeps them all. It is local when no rule sees the question and every cut is before the
    first layer of a band: layers of one band share blocks, so they must store the same tokens.
    Raises RequestError when what it carries is malformed.
    """
    asked = parse_wire(extra_args or {}, bands.layers)
    floor = parse_floor(extra_args or {})
    trace = parse_trace(extra_args or {})
    forms = parse_units(extra_args or {})
    items = vision_items(features or ())
    if asked is None or not items or prompt_token_ids is None:
        return None
    keep, rules = asked
    inside = cuts_inside_bands(cut_layers(keep, 1.0), bands.starts)
    is_local = see_no_question(rules) and not inside
    units = vision_units(items, forms, frames=is_local)
    if is_local:
        lengths = [len(unit.vision) for unit in units]
        plan_of = {length: make_plan(keep, rules, length) for length in set(lengths)}
        plans = [plan_of[length] for length in lengths]
        if not any(plan.reduces for plan in plans):
            return None
        return local_request(plans, units, len(prompt_token_ids), trace)
    if alone := of_one_image(rules):
        raise RequestError(
            f"rule {alone} ranks images one by one, and the cuts before layers {inside} are not"
            f" before the first layer of a KV band ({list(bands.starts)}); move the cuts there, or"
            " name another rule"
        )
    if floor and (found := adaptive_rules(rules)):
        raise RequestError(
            f"rule {found[0]} says how many tokens stay, and a per-image floor of {floor} would have some"
            f" images keep more; leave the floor out, or rank by {found[0].with_fixed_count()}"
        )
    plan = make_plan(keep, rules, sum(len(unit.vision) for unit in units))
    if not plan.reduces:
        return None
    return guided_request(plan, units, len(prompt_token_ids), trace, floor)


def vision_units(
    items: Sequence[MultiModalFeatureSpec],
    forms: Sequence[tuple[int, int, int]] = (),
    *,
    frames: bool = True,
) -> list[Unit]:
    """The images of a prompt, and the frames of its videos, or with ``frames`` off whole videos.

    ``forms``: (frames, rows, columns) of each item, zeros where that is not known; as many as items
    or none. What has no vision tokens is no unit. A video whose frames stand apart shows them by itself.
    """
    known = forms if len(forms) == len(items) else [(0, 0, 0)] * len(items)
    units = []
    for item, (count, *grid) in zip(items, known, strict=True):
        span = vision_span(item)
        if not len(span):
            continue
        pieces = _frames(span, item.modality == "video", count) if frames else [span]
        for number, piece in enumerate(pieces):
            fits = len(piece) == grid[0] * grid[1]
            seed = zlib.crc32(f"{number} {item.identifier}".encode())
            units.append(Unit(piece, seed, (grid[0], grid[1]) if fits else None))
    return units


def _frames(span: IntArray, is_video: bool, count: int) -> Sequence[IntArray]:
    if not is_video:
        return [span]
    apart = np.flatnonzero(np.diff(span) > 1) + 1
    if len(apart):
        return np.split(span, apart)
    return np.split(span, count) if count and len(span) % count == 0 else [span]
