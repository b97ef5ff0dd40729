"""What the vision towers of the measured families make of an image, and what that costs.

Everything is read off the checkpoint's ``config.json`` and the side of the square image, in pixels.
FLOPs are multiply-adds, squares in full, as ``vtr_vllm.schedules.cost`` counts the decoder's.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def vision_tokens(config: Config, side: int) -> int:
    """Return the vision tokens of one image of ``side`` by ``side`` pixels."""
    vision = config["vision_config"]
    if config["model_type"] == "internvl":
        return _tiles(vision, side) * int(config["image_seq_length"])
    if config["model_type"] == "qwen2_5_vl":
        return int(side // vision["patch_size"] // vision["spatial_merge_size"]) ** 2
    return int(vision["image_size"] // vision["patch_size"]) ** 2


def tower_flops(config: Config, side: int) -> int:
    """Return the multiply-adds of tower and projector for one image of ``side`` pixels a side."""
    if config["model_type"] == "internvl":
        return _internvl(config, side)
    if config["model_type"] == "qwen2_5_vl":
        return _qwen(config, side)
    return _llava(config)


def _layer(t: int, d: int, m: int) -> int:
    """One layer over ``t`` tokens of width ``d``, with an MLP of width ``m`` in two matrices."""
    return 4 * t * d * d + 2 * t * t * d + 2 * t * d * m


def _llava(config: Config) -> int:
    """Patches and a CLS token; layers behind the one whose features are read do not run."""
    vision, hidden = config["vision_config"], config["text_config"]["hidden_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    d, m = vision["hidden_size"], vision["intermediate_size"]
    depth, feature = vision["num_hidden_layers"], config["vision_feature_layer"]
    layers = feature if feature >= 0 else depth + 1 + feature
    embed = patches * d * 3 * vision["patch_size"] ** 2
    project = patches * (d * hidden + hidden * hidden)
    return int(embed + layers * _layer(patches + 1, d, m) + project)


def _tiles(vision: Config, side: int) -> int:
    """Tiles of the tower's own size, and a thumbnail unless one tile is all."""
    across = side // vision["image_size"][0]
    return int(across**2 + (across > 1))


def _internvl(config: Config, side: int) -> int:
    """Each tile alone, with a CLS token; neighbouring patches, four as a rule, become one token."""
    vision, hidden = config["vision_config"], config["text_config"]["hidden_size"]
    patches = (vision["image_size"][0] // vision["patch_size"][0]) ** 2
    d, m = vision["hidden_size"], vision["intermediate_size"]
    embed = patches * d * 3 * vision["patch_size"][0] ** 2
    merged = patches // config["image_seq_length"]
    project = config["image_seq_length"] * (merged * d * hidden + hidden * hidden)
    layers = vision["num_hidden_layers"] * _layer(patches + 1, d, m)
    return int(_tiles(vision, side) * (embed + layers + project))


def _qwen(config: Config, side: int) -> int:
    """Gated MLPs; attention within windows, but in a few layers over the whole image."""
    vision = config["vision_config"]
    patches = (side // vision["patch_size"]) ** 2
    window = (vision["window_size"] // vision["patch_size"]) ** 2
    d, m, whole = (
        vision["hidden_size"],
        vision["intermediate_size"],
        vision["fullatt_block_indexes"],
    )
    seen = (vision["depth"] - len(whole)) * window + len(whole) * patches
    merged = vision["spatial_merge_size"] ** 2 * d
    embed = patches * d * 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    layers = vision["depth"] * (4 * patches * d * d + 3 * patches * d * m) + 2 * patches * seen * d
    project = vision_tokens(config, side) * (merged * merged + merged * vision["out_hidden_size"])
    return int(embed + layers + project)
