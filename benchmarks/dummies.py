"""Models of real sizes whose weights vLLM makes up: everything of a checkpoint but its weights.

How fast a model runs does not depend on what it says. The small ones have a decoder of Qwen2-0.5B's
sizes and a tower that takes the share of prefill FLOPs that it takes in the model that they are like.
The towers of ``llava``, ``internvl2`` and ``qwen2.5-vl`` have one or two layers, wide as there: that
of ``half-b`` has many narrow ones, in which attention and norms cost more time per FLOP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.tiny import TinyShape, write_model_files
from vtr_vllm.schedules import ModelGeometry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# One token a byte, so about 30 text tokens: a short question without a system prompt.
QUESTION = "What is this?"
VOCABULARY = 32_000
SMALL = ModelGeometry(24, 896, 4864, 14, 2, 64)
"""The decoder of Qwen2-0.5B, but for the vocabulary."""
HALF_B = TinyShape(
    layers=24,
    hidden=896,
    heads=14,
    kv_heads=2,
    head_dim=64,
    mlp=4864,
    vocab=VOCABULARY,
    image=336,
    patch=14,
    tower_layers=16,
    tower_hidden=256,
    tower_heads=4,
    tower_mlp=1024,
)


@dataclass(frozen=True)
class Dummy:
    """A model to measure."""

    write: Callable[[Path, str], None]
    """(folder, dtype) -> config, tokenizer and processor in the folder."""
    image_prompt: str
    """What stands for an image in a prompt."""
    image_side: int
    """Pixels of the square images that it is shown."""
    tower_share: float | None
    """The tower's share of the prefill FLOPs, with 64 text tokens, of the model that it is like; None: it
    is like none (``narrow``: next to no arithmetic, ``long``: little enough for very long prompts)."""
    max_model_len: int = 1024
    gpu: bool = False
    """Too large for a CPU."""

    @property
    def prompt(self) -> str:
        """A question about one image."""
        return f"USER: {self.image_prompt}\n{QUESTION} ASSISTANT:"


def _llava(shape: TinyShape, gpu: bool = False, tower_share: float | None = 0.041) -> Dummy:
    """LLaVA-1.5: one image size, 576 vision tokens of 336 pixels."""
    return Dummy(
        write=lambda folder, dtype: write_model_files(folder, shape, dtype),
        image_prompt="<image>",
        image_side=shape.image,
        tower_share=tower_share,
        gpu=gpu,
    )


def _internvl(
    decoder: ModelGeometry, width: int, mlp: int, depth: int, heads: int, gpu: bool = False
) -> Dummy:
    """InternVL2 in the Hugging Face form: 4 tiles and a thumbnail of 256 vision tokens each."""

    def write(folder: Path, dtype: str) -> None:
        from transformers import (  # seconds, and only this needs them
            GotOcr2ImageProcessorPil,
            InternVLConfig,
            InternVLProcessor,
            InternVLVideoProcessor,
        )

        special = ("<pad>", "<s>", "</s>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
        words = _tokenizer(
            special,
            extra_special_tokens={
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            },
        )
        side = {"height": 448, "width": 448}
        InternVLConfig(
            architectures=["InternVLForConditionalGeneration"],
            dtype=dtype,
            image_token_id=special.index("<IMG_CONTEXT>"),
            image_seq_length=256,
            tie_word_embeddings=False,
            vision_config={
                "hidden_size": width,
                "intermediate_size": mlp,
                "num_hidden_layers": depth,
                "num_attention_heads": heads,
                "image_size": [448, 448],
                "patch_size": [14, 14],
                "attention_bias": True,
            },
            text_config={"model_type": "qwen2", **_text(decoder)},
        ).save_pretrained(folder)
        InternVLProcessor(
            GotOcr2ImageProcessorPil(
                size=side, crop_to_patches=True, min_patches=1, max_patches=12
            ),
            words,
            InternVLVideoProcessor(size=side),
            image_seq_length=256,
        ).save_pretrained(folder)

    return Dummy(write, "<IMG_CONTEXT>", 896, 0.158, max_model_len=2048, gpu=gpu)


def _qwen(
    decoder: ModelGeometry,
    width: int,
    mlp: int,
    depth: int,
    heads: int,
    whole: tuple[int, ...],
    mrope: tuple[int, int, int],
    gpu: bool = False,
    tower_share: float | None = 0.278,
) -> Dummy:
    """Qwen2.5-VL shown 896 by 896 pixels: 1,024 vision tokens."""

    def write(folder: Path, dtype: str) -> None:
        from transformers import (
            Qwen2_5_VLConfig,
            Qwen2_5_VLProcessor,
            Qwen2VLImageProcessor,
            Qwen2VLVideoProcessor,
        )

        special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")
        special += ("<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
        Qwen2_5_VLConfig(
            architectures=["Qwen2_5_VLForConditionalGeneration"],
            dtype=dtype,
            tie_word_embeddings=False,
            image_token_id=special.index("<|image_pad|>"),
            video_token_id=special.index("<|video_pad|>"),
            vision_start_token_id=special.index("<|vision_start|>"),
            vision_end_token_id=special.index("<|vision_end|>"),
            vision_config={
                "hidden_size": width,
                "intermediate_size": mlp,
                "depth": depth,
                "num_heads": heads,
                "out_hidden_size": decoder.hidden_size,
                "fullatt_block_indexes": list(whole),
            },
            text_config={
                **_text(decoder),
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "mrope_section": list(mrope),
                },
            },
        ).save_pretrained(folder)
        Qwen2_5_VLProcessor(
            Qwen2VLImageProcessor(), _tokenizer(special), Qwen2VLVideoProcessor()
        ).save_pretrained(folder)

    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return Dummy(write, image, 896, tower_share, max_model_len=2048, gpu=gpu)


def _text(decoder: ModelGeometry) -> dict[str, object]:
    return {
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }


def _tokenizer(special: tuple[str, ...], **options: object) -> PreTrainedTokenizerFast:
    from tests.families.checkpoint import tokenizer  # transformers behind it

    return tokenizer(special, VOCABULARY, eos_token=special[2], pad_token=special[0], **options)


DUMMIES = {
    "half-b": _llava(HALF_B),
    "llava": _llava(
        replace(HALF_B, tower_layers=2, tower_hidden=1024, tower_heads=16, tower_mlp=5120)
    ),
    "narrow": _llava(
        replace(
            HALF_B,
            layers=32,
            hidden=64,
            heads=2,
            kv_heads=2,
            head_dim=32,
            mlp=128,
            image=112,
            tower_layers=2,
            tower_hidden=64,
            tower_heads=2,
            tower_mlp=128,
        ),
        tower_share=None,
    ),
    "internvl2": _internvl(SMALL, width=1024, mlp=6144, depth=1, heads=16),
    "qwen2.5-vl": _qwen(
        SMALL, width=1024, mlp=4288, depth=2, heads=16, whole=(), mrope=(8, 12, 12)
    ),
    "long": _qwen(
        ModelGeometry(12, 512, 2048, 8, 2, 64),
        width=256,
        mlp=1024,
        depth=1,
        heads=4,
        whole=(),
        mrope=(8, 12, 12),
        tower_share=None,
    ),
    "llava-7b": _llava(
        TinyShape(
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=32,
            head_dim=128,
            mlp=11008,
            vocab=VOCABULARY,
            image=336,
            patch=14,
            tower_layers=24,
            tower_hidden=1024,
            tower_heads=16,
            tower_mlp=4096,
        ),
        gpu=True,
    ),
    "internvl2-8b": _internvl(
        ModelGeometry(32, 4096, 14336, 32, 8, 128),
        width=1024,
        mlp=4096,
        depth=24,
        heads=16,
        gpu=True,
    ),
    "qwen2.5-vl-7b": _qwen(
        ModelGeometry(28, 3584, 18944, 28, 4, 128),
        width=1280,
        mlp=3420,
        depth=32,
        heads=16,
        whole=(7, 15, 23, 31),
        mrope=(16, 24, 24),
        gpu=True,
    ),
}
