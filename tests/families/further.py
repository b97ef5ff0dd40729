"""Families beside the large ones: Mistral 3, Pixtral, Idefics3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessorPil,
    PixtralProcessor,
    PixtralVisionConfig,
)

from tests.families import checkpoint
from tests.families.family import Family, LanguageModel
from tests.families.llava import DECODER, PATCH, TOWER

SPECIALS = ("<pad>", "<s>", "</s>")


def _tokenizer(specials: tuple[str, ...], **named: str) -> Any:
    return checkpoint.tokenizer(
        (*SPECIALS, *specials),
        DECODER["vocab_size"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=DECODER["max_position_embeddings"],
        extra_special_tokens=named,
    )


PIXTRAL_SPECIALS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


def _pixtral_tower() -> PixtralVisionConfig:
    return PixtralVisionConfig(**TOWER, image_size=168, head_dim=32, hidden_act="silu")


def _pixtral_processor(merge: int) -> PixtralProcessor:
    patch = {"height": PATCH, "width": PATCH}
    return PixtralProcessor(
        PixtralImageProcessorPil(size={"longest_edge": 168}, patch_size=patch),
        _tokenizer(PIXTRAL_SPECIALS),
        patch_size=PATCH,
        spatial_merge_size=merge,
    )


def _write_mistral3(folder: Path) -> None:
    """Images at their own size, four patches a token; a text token ends each row of them."""
    model = Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=_pixtral_tower(),
            text_config=MistralConfig(**DECODER, head_dim=32, sliding_window=None),
            image_token_index=3,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        )
    )
    checkpoint.save(folder, model, _pixtral_processor(2))


def _write_pixtral(folder: Path) -> None:
    """Pixtral-12B in the LLaVA form: as Mistral3, without merging."""
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=_pixtral_tower(),
            text_config=MistralConfig(**DECODER, head_dim=32, sliding_window=None),
            image_token_index=3,
            image_seq_length=1,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        )
    )
    checkpoint.save(folder, model, _pixtral_processor(1))


def _write_idefics3(folder: Path) -> None:
    """Tiles in rows with text between them, and an overview behind them."""
    specials = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    rows = tuple(f"<row_{row}_col_{col}>" for row in (1, 2, 3) for col in (1, 2, 3))
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config={**TOWER, "image_size": 112},
            text_config=LlamaConfig(**DECODER),
            image_token_id=3,
            scale_factor=2,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 224}, max_image_size={"longest_edge": 112}, do_image_splitting=True
    )
    processor = Idefics3Processor(images, _tokenizer((*specials, *rows)), image_seq_len=16)
    checkpoint.save(folder, model, processor)


def _idefics3_language_model(folder: Path) -> LanguageModel:
    model = Idefics3ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    return LanguageModel(model.eval().model.text_model, model.lm_head.weight)


FAMILIES = (
    Family(
        name="mistral-small-3",
        architecture="Mistral3ForConditionalGeneration",
        decoder="MistralModel",
        tower="Pixtral",
        hub=(
            "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
            "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        ),
        write=_write_mistral3,
        image="[IMG]",
        sizes=((168, 168), (168, 84), (112, 140)),
    ),
    Family(
        name="pixtral",
        architecture="LlavaForConditionalGeneration",
        decoder="MistralModel",
        tower="Pixtral",
        hub=("mistral-community/pixtral-12b",),
        write=_write_pixtral,
        image="[IMG]",
        sizes=((112, 112), (140, 84), (56, 84)),
    ),
    Family(
        name="idefics3",
        architecture="Idefics3ForConditionalGeneration",
        decoder="LlamaModel",
        tower="SigLIP",
        hub=("HuggingFaceM4/Idefics3-8B-Llama3",),
        write=_write_idefics3,
        language_model=_idefics3_language_model,
        image="<image>",
        sizes=((224, 224), (224, 112), (112, 224)),
    ),
)
