"""Tiny LLaVA checkpoints with random weights, in the layout and key names of the hub.

Nothing is trained: a random model is enough to compare two implementations of the same forward
pass. The scales are chosen so that greedy tokens vary and attention is far from flat. Files are
written straight from tensors and dictionaries, without building a model, in a fraction of a
second. ``write_model_files`` alone makes a folder for engines that fill in dummy weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

SPECIALS = ("<pad>", "<s>", "</s>", "<image>")
PAD, BOS, EOS, IMAGE = range(4)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] in ('image', 'image_url') %}<image>\n"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of a LLaVA: a Llama decoder with grouped queries behind a CLIP tower."""

    layers: int = 8
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 256
    vocab: int = 288
    image: int = 112
    patch: int = 14
    tower_layers: int = 3
    tower_hidden: int = 64
    tower_heads: int = 2
    tower_mlp: int = 128
    feature_layer: int = -2
    max_positions: int = 2048
    registers: int = 0
    """Learned ones behind each image's tokens."""

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of one image."""
        return (self.image // self.patch) ** 2


def write_tiny_llava(
    folder: Path | str,
    *,
    layers: int = 8,
    hidden: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    image: int = 112,
    vision_tokens: int = 64,
    seed: int = 0,
    registers: int = 0,
) -> TinyShape:
    """Write a random-weight LLaVA to ``folder`` and return its shape.

    ``vision_tokens`` must be a square whose root divides ``image``.
    """
    side = round(vision_tokens**0.5)
    if side * side != vision_tokens or image % side:
        raise ValueError(f"{vision_tokens} vision tokens do not tile an image of {image} px")
    shape = TinyShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        image=image,
        patch=image // side,
        registers=registers,
    )
    write_model_files(folder, shape)
    weights = {name: value.contiguous() for name, value in random_weights(shape, seed)}
    save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
    return shape


@cache
def tiny_llava(layers: int = 8, vision_tokens: int = 64, seed: int = 0, registers: int = 0) -> Path:
    """Return the folder of a tiny LLaVA, written once per process (for session fixtures)."""
    folder = Path(mkdtemp(prefix="tiny-llava-"))
    write_tiny_llava(
        folder, layers=layers, vision_tokens=vision_tokens, seed=seed, registers=registers
    )
    return folder


def random_image(shape: TinyShape, seed: int) -> Image.Image:
    """Return an image of exactly the model's input size: coarse random blocks under noise."""
    rng = np.random.default_rng(seed)
    side = shape.image // shape.patch
    blocks = rng.integers(0, 256, (side, side, 3)).repeat(shape.patch, 0).repeat(shape.patch, 1)
    noise = rng.integers(-40, 41, (side * shape.patch, side * shape.patch, 3))
    return Image.fromarray(np.clip(blocks + noise, 0, 255).astype(np.uint8))


def write_model_files(folder: Path | str, shape: TinyShape, dtype: str = "float32") -> None:
    """Write everything but the weights: config, tokenizer, processor, chat template."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": model_config(shape, dtype),
        "generation_config.json": {
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "do_sample": False,
        },
        "processor_config.json": processor_config(shape),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "image_token": "<image>",
            "model_max_length": shape.max_positions,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    byte_tokenizer(shape.vocab).save(str(folder / "tokenizer.json"))


def byte_tokenizer(vocab: int, specials: Sequence[str] = SPECIALS) -> Tokenizer:
    """Return a tokenizer with one token per byte; ids beyond those name no text.

    The rest of the vocabulary is filled so that every id a random model emits can be decoded.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*specials, *alphabet]
    words += [f"w{i}" for i in range(len(words), vocab)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in specials])
    return tokenizer


def model_config(shape: TinyShape, dtype: str) -> dict[str, object]:
    """Return ``config.json`` of ``shape``."""
    return {
        **({"vtr_registers": shape.registers} if shape.registers else {}),
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": dtype,
        "image_token_index": IMAGE,
        "image_seq_length": shape.vision_tokens,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": shape.feature_layer,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama",
            "hidden_size": shape.hidden,
            "intermediate_size": shape.mlp,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "vocab_size": shape.vocab,
            "max_position_embeddings": shape.max_positions,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": shape.tower_hidden,
            "intermediate_size": shape.tower_mlp,
            "num_hidden_layers": shape.tower_layers,
            "num_attention_heads": shape.tower_heads,
            "image_size": shape.image,
            "patch_size": shape.patch,
            "projection_dim": shape.tower_hidden,
        },
    }


def processor_config(shape: TinyShape) -> dict[str, object]:
    """Return ``processor_config.json`` of ``shape``."""
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": shape.patch,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
        "image_processor": {
            "image_processor_type": "CLIPImageProcessor",
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": shape.image},
            "crop_size": {"height": shape.image, "width": shape.image},
        },
    }


class _Draw:
    """Normal draws by name from one seeded generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        """Return a normal tensor of ``size``."""
        return mean + std * torch.randn(*size, generator=self.generator)

    def linear(
        self, name: str, inner: int, outer: int, gain: float = 1.2, bias: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield a weight whose outputs have ``gain`` times the scale of its inputs."""
        yield f"{name}.weight", self.normal(outer, inner, std=gain / inner**0.5)
        if bias:
            yield f"{name}.bias", self.normal(outer, std=0.1)

    def norm(self, name: str, size: int, bias: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield a norm's weight near one."""
        yield f"{name}.weight", self.normal(size, std=0.1, mean=1.0)
        if bias:
            yield f"{name}.bias", self.normal(size, std=0.1)


def random_weights(shape: TinyShape, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of every weight of ``shape``, fp32."""
    draw = _Draw(seed)
    yield from _tower_weights(draw, shape)
    for name, inner in (("linear_1", shape.tower_hidden), ("linear_2", shape.hidden)):
        yield from draw.linear(
            f"multi_modal_projector.{name}", inner, shape.hidden, gain=1.5, bias=True
        )
    yield "language_model.model.embed_tokens.weight", draw.normal(shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        yield from _decoder_weights(draw, shape, f"language_model.model.layers.{layer}")
    yield from draw.norm("language_model.model.norm", shape.hidden)
    yield from draw.linear("language_model.lm_head", shape.hidden, shape.vocab, gain=2.0)
    if shape.registers:
        yield "registers", draw.normal(shape.registers, shape.hidden)


def _tower_weights(draw: _Draw, shape: TinyShape) -> Iterator[tuple[str, Tensor]]:
    root, width = "vision_tower.vision_model", shape.tower_hidden
    pixels = 3 * shape.patch**2
    embeddings = f"{root}.embeddings"
    yield f"{embeddings}.class_embedding", draw.normal(width)
    patches = draw.normal(width, pixels, std=2 / pixels**0.5)
    yield f"{embeddings}.patch_embedding.weight", patches.view(width, 3, shape.patch, shape.patch)
    positions = draw.normal(shape.vision_tokens + 1, width, std=0.5)
    yield f"{embeddings}.position_embedding.weight", positions
    yield from draw.norm(f"{root}.pre_layrnorm", width, bias=True)
    for layer in range(shape.tower_layers):
        name = f"{root}.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from draw.linear(f"{name}.self_attn.{part}", width, width, bias=True)
        yield from draw.linear(f"{name}.mlp.fc1", width, shape.tower_mlp, bias=True)
        yield from draw.linear(f"{name}.mlp.fc2", shape.tower_mlp, width, bias=True)
        yield from draw.norm(f"{name}.layer_norm1", width, bias=True)
        yield from draw.norm(f"{name}.layer_norm2", width, bias=True)
    yield from draw.norm(f"{root}.post_layernorm", width, bias=True)


def _decoder_weights(draw: _Draw, shape: TinyShape, name: str) -> Iterator[tuple[str, Tensor]]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield from draw.linear(f"{name}.self_attn.q_proj", shape.hidden, queries, gain=1.4)
    yield from draw.linear(f"{name}.self_attn.k_proj", shape.hidden, keys, gain=1.4)
    yield from draw.linear(f"{name}.self_attn.v_proj", shape.hidden, keys, gain=1.5)
    yield from draw.linear(f"{name}.self_attn.o_proj", queries, shape.hidden, gain=1.5)
    yield from draw.linear(f"{name}.mlp.gate_proj", shape.hidden, shape.mlp)
    yield from draw.linear(f"{name}.mlp.up_proj", shape.hidden, shape.mlp)
    yield from draw.linear(f"{name}.mlp.down_proj", shape.mlp, shape.hidden)
    yield from draw.norm(f"{name}.input_layernorm", shape.hidden)
    yield from draw.norm(f"{name}.post_attention_layernorm", shape.hidden)
