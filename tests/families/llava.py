"""The LLaVA line: 1.5 with several decoders and towers, NeXT, OneVision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from tests.families import checkpoint
from tests.families.family import Family

SPECIALS = ("<pad>", "<s>", "</s>", "<image>", "<video>")
PAD, BOS, EOS, IMAGE, VIDEO = range(5)
VOCAB, LAYERS, PATCH = 320, 6, 14
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] in ('image', 'image_url') %}<image>\n"
    "{% elif c['type'] in ('video', 'video_url') %}<video>\n"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
DECODER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 2048,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}
TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}


def _llama(kv_heads: int = 2) -> PreTrainedConfig:
    return LlamaConfig(**{**DECODER, "num_key_value_heads": kv_heads})


def _mistral() -> PreTrainedConfig:
    return MistralConfig(**DECODER, sliding_window=None)


def _clip(image: int) -> PreTrainedConfig:
    return CLIPVisionConfig(**TOWER, image_size=image, projection_dim=64)


def _siglip(image: int) -> PreTrainedConfig:
    return SiglipVisionConfig(**TOWER, image_size=image, vision_use_head=False)


def _save(folder: Path, model: Any, processor: Any) -> None:
    model.generation_config.update(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    checkpoint.save(folder, model, processor, names={"vision_tower.": "vision_tower.vision_model."})


def _tokenizer() -> Any:
    return checkpoint.tokenizer(
        SPECIALS,
        VOCAB,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=DECODER["max_position_embeddings"],
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _write_llava(folder: Path, text: PreTrainedConfig, tower: PreTrainedConfig) -> None:
    """LLaVA-1.5: one square crop an image; CLIP's class token is left out, SigLIP has none."""
    clip, side = isinstance(tower, CLIPVisionConfig), tower.image_size
    strategy = "default" if clip else "full"
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower,
            text_config=text,
            image_token_index=IMAGE,
            image_seq_length=(side // PATCH) ** 2,
            vision_feature_select_strategy=strategy,
            tie_word_embeddings=False,
        )
    )
    images = (
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=_square(side))
        if clip
        else SiglipImageProcessorPil(size=_square(side))
    )
    processor = LlavaProcessor(
        images,
        _tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(clip),
        chat_template=CHAT_TEMPLATE,
    )
    _save(folder, model, processor)


def _write_next(folder: Path, text: PreTrainedConfig) -> None:
    """LLaVA-NeXT: an overview and tiles of the image, padding cut off, a newline behind each row."""
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=_clip(56),
            text_config=text,
            image_token_index=IMAGE,
            image_seq_length=16,
            image_grid_pinpoints=pinpoints,
            tie_word_embeddings=False,
        )
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size=_square(56), image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        images,
        _tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    _save(folder, model, processor)


def _write_onevision(folder: Path) -> None:
    """LLaVA-OneVision: tiles as in NeXT, videos with pooled frames."""
    pinpoints = [[56 * high, 56 * wide] for high in (1, 2, 3) for wide in (1, 2, 3)]
    model = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=_siglip(56),
            text_config=Qwen2Config(**DECODER),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=pinpoints,
            tie_word_embeddings=False,
        )
    )
    images = LlavaOnevisionImageProcessorPil(
        size=_square(56), image_grid_pinpoints=pinpoints, do_pad=True
    )
    processor = LlavaOnevisionProcessor(
        images,
        _tokenizer(),
        LlavaOnevisionVideoProcessor(size=_square(56)),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    _save(folder, model, processor)


FAMILIES = (
    Family(
        name="llava-1.5",
        architecture="LlavaForConditionalGeneration",
        decoder="LlamaModel",
        tower="CLIP",
        hub=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"),
        write=lambda folder: _write_llava(folder, _llama(kv_heads=4), _clip(112)),
        image="<image>",
    ),
    Family(
        name="llava-1.5-llama3",
        architecture="LlavaForConditionalGeneration",
        decoder="LlamaModel",
        tower="CLIP",
        hub=("xtuner/llava-llama-3-8b-v1_1-transformers",),
        write=lambda folder: _write_llava(folder, _llama(), _clip(112)),
        image="<image>",
    ),
    Family(
        name="llava-siglip",
        architecture="LlavaForConditionalGeneration",
        decoder="MistralModel",
        tower="SigLIP",
        hub=(),
        write=lambda folder: _write_llava(folder, _mistral(), _siglip(112)),
        image="<image>",
    ),
    Family(
        name="llava-next-mistral",
        architecture="LlavaNextForConditionalGeneration",
        decoder="MistralModel",
        tower="CLIP",
        hub=("llava-hf/llava-v1.6-mistral-7b-hf",),
        write=lambda folder: _write_next(folder, _mistral()),
        image="<image>",
    ),
    Family(
        name="llava-next-vicuna",
        architecture="LlavaNextForConditionalGeneration",
        decoder="LlamaModel",
        tower="CLIP",
        hub=("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-hf/llava-v1.6-vicuna-13b-hf"),
        write=lambda folder: _write_next(folder, _llama(kv_heads=4)),
        image="<image>",
    ),
    Family(
        name="llava-onevision",
        architecture="LlavaOnevisionForConditionalGeneration",
        decoder="Qwen2Model",
        tower="SigLIP",
        hub=(
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        ),
        write=_write_onevision,
        image="<image>",
        video="<video>",
    ),
)
