"""InternVL: the chat form with its own config code, and the Hugging Face form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.families import checkpoint
from tests.families.family import Family, LanguageModel
from tests.families.llava import DECODER

SPECIALS = ("<pad>", "<s>", "</s>", "<img>", "</img>", "<IMG_CONTEXT>", "<|video_pad|>", "<video>")
BOS, EOS, PAD, CONTEXT = 1, 2, 0, 5
TILE, PATCH, WIDTH, MLP, TOWER_LAYERS = 112, 14, 64, 128, 3
TILE_TOKENS = (TILE // PATCH // 2) ** 2
HEADS, KV_HEADS = DECODER["num_attention_heads"], DECODER["num_key_value_heads"]
SIZES = ((224, 224), (336, 168), (112, 224))
"""Four, eight and two tiles; and a thumbnail each."""
DECODERS: dict[str, tuple[type[PreTrainedConfig], type[nn.Module], dict[str, Any]]] = {
    "InternLM2ForCausalLM": (LlamaConfig, LlamaForCausalLM, {"model_type": "internlm2"}),
    "LlamaForCausalLM": (LlamaConfig, LlamaForCausalLM, {"model_type": "llama"}),
    "Qwen2ForCausalLM": (Qwen2Config, Qwen2ForCausalLM, {"model_type": "qwen2"}),
    "Qwen3ForCausalLM": (Qwen3Config, Qwen3ForCausalLM, {"model_type": "qwen3", "head_dim": 32}),
}
"""By architecture: what Transformers runs it with. InternLM2 is Llama under other names."""
CONFIG_CODE = """
from transformers import AutoConfig, PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternLM2Config(PretrainedConfig):
    model_type = "internlm2"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        fields = dict(llm_config or {"model_type": "internlm2"})
        kind = fields.pop("model_type")
        own = kind == "internlm2"
        self.llm_config = InternLM2Config(**fields) if own else AutoConfig.for_model(kind, **fields)
        super().__init__(**kwargs)
"""
"""The hub's repositories carry config code, which vLLM runs under trust_remote_code; it has no
config class of its own for this form. Theirs is in three files, with defaults for every field. Their
model and tokenizer code is left out: vLLM uses neither."""


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, MLP)
        self.fc2 = nn.Linear(MLP, WIDTH)


class _TowerLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = _Attention()
        self.mlp = _Mlp()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))


class _TowerEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.patch_embedding = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.position_embedding = nn.Parameter(torch.zeros(1, (TILE // PATCH) ** 2 + 1, WIDTH))


class _Chat(nn.Module):
    """The weights of an InternVLChatModel, named as on the hub; it cannot run."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(_TowerLayer() for _ in range(TOWER_LAYERS))}
        )
        self.vision_model = nn.ModuleDict({"embeddings": _TowerEmbeddings(), "encoder": encoder})
        hidden = DECODER["hidden_size"]
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * WIDTH),
            nn.Linear(4 * WIDTH, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
        )
        self.language_model = decoder


def _chat_config(decoder: str) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_thumbnail": True,
        "llm_config": {
            **DECODER,
            "architectures": [decoder],
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            **DECODERS[decoder][2],
        },
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_act": "gelu",
            "hidden_size": WIDTH,
            "image_size": TILE,
            "initializer_factor": 1.0,
            "intermediate_size": MLP,
            "layer_norm_eps": 1e-6,
            "norm_type": "layer_norm",
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": TOWER_LAYERS,
            "patch_size": PATCH,
            "qk_normalization": False,
            "qkv_bias": True,
        },
    }


def _decoder(architecture: str) -> nn.Module:
    """The decoder as Transformers has it, with weights that are still to come."""
    config, model, extra = DECODERS[architecture]
    sizes = {**DECODER, **extra, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    del sizes["model_type"]
    return model(config(**sizes, rms_norm_eps=1e-6, attn_implementation="eager")).eval()


def _write_chat(folder: Path, decoder: str) -> None:
    """Tiles of dynamic count, each half the tower's resolution, and a thumbnail behind them."""
    model = _Chat(_decoder(decoder))
    checkpoint.randomise(model)
    weights = model.state_dict()
    if decoder == "InternLM2ForCausalLM":
        weights = _to_internlm2(weights)
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_chat_config(decoder), indent=1))
    (folder / "configuration_internvl_chat.py").write_text(CONFIG_CODE)
    _tokenizer().save_pretrained(folder)


def _write_qianfan(folder: Path) -> None:
    """The chat form with Qwen3, under a config class that vLLM has."""
    _write_chat(folder, "Qwen3ForCausalLM")
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    config["architectures"] = ["QianfanOCRForConditionalGeneration"]
    config["model_type"] = "qianfan_ocr"
    config["image_token_id"] = CONTEXT
    config["text_config"] = config.pop("llm_config")
    config["vision_config"]["model_type"] = "qianfan_ocr_vision"
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def _chat_language_model(folder: Path) -> LanguageModel:
    config = json.loads((folder / "config.json").read_text())
    architecture = (config.get("llm_config") or config["text_config"])["architectures"][0]
    own = "language_model."
    stored = load_file(folder / "model.safetensors")
    weights = {name.removeprefix(own): w for name, w in stored.items() if name.startswith(own)}
    if architecture == "InternLM2ForCausalLM":
        weights = _from_internlm2(weights)
    model = _decoder(architecture)
    model.load_state_dict(weights)
    return LanguageModel(model.model, model.lm_head.weight)


NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
"""Llama's names and InternLM2's."""


def _to_internlm2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Llama's weights as InternLM2's: its one ``wqkv`` holds, by key head, the queries of the
    group, then the key, then the value."""
    renamed = {}
    for name, weight in weights.items():
        if ".self_attn.q_proj" in name:
            parts = [
                weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")
            ]
            groups = [part.unflatten(0, (KV_HEADS, -1)) for part in parts]
            fused = name.replace("self_attn.q_proj", "attention.wqkv")
            renamed[fused] = torch.cat(groups, dim=1).flatten(0, 1)
        elif ".self_attn.k_proj" not in name and ".self_attn.v_proj" not in name:
            for llama, internlm2 in NAMES.items():
                name = name.replace(llama, internlm2)
            renamed[name] = weight
    return renamed


def _from_internlm2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """InternLM2's weights as Llama's, split as InternLM2's own code does."""
    renamed = {}
    for name, weight in weights.items():
        if "wqkv" in name:
            heads = weight.unflatten(0, (KV_HEADS, HEADS // KV_HEADS + 2, -1))
            parts = {"q_proj": heads[:, :-2], "k_proj": heads[:, -2:-1], "v_proj": heads[:, -1:]}
            for part, rows in parts.items():
                renamed[name.replace("attention.wqkv", f"self_attn.{part}")] = rows.flatten(0, 2)
        else:
            for llama, internlm2 in NAMES.items():
                name = name.replace(internlm2, llama)
            renamed[name] = weight
    return renamed


def _tokenizer() -> Any:
    return checkpoint.tokenizer(
        SPECIALS,
        DECODER["vocab_size"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=DECODER["max_position_embeddings"],
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )


def _write_transformers(folder: Path, text: PreTrainedConfig) -> None:
    """The same model under Transformers' names, with Transformers' processor."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": TOWER_LAYERS,
        "num_attention_heads": 2,
        "image_size": [TILE, TILE],
        "patch_size": [PATCH, PATCH],
        "attention_bias": True,
    }
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=tower,
            text_config=text,
            image_token_id=CONTEXT,
            image_seq_length=TILE_TOKENS,
            tie_word_embeddings=False,
        )
    )
    side = {"height": TILE, "width": TILE}
    processor = InternVLProcessor(
        GotOcr2ImageProcessorPil(size=side, crop_to_patches=True, min_patches=1, max_patches=12),
        _tokenizer(),
        InternVLVideoProcessor(size=side, do_sample_frames=False),
        image_seq_length=TILE_TOKENS,
    )
    checkpoint.save(folder, model, processor)


def _chat(name: str, decoder: str, hub: tuple[str, ...], **more: Any) -> Family:
    return Family(
        name=name,
        architecture="InternVLChatModel",
        decoder=decoder.replace("ForCausalLM", "Model"),
        tower="InternViT",
        hub=hub,
        write=lambda folder: _write_chat(folder, decoder),
        language_model=_chat_language_model,
        image="<image>",
        sizes=SIZES,
        engine={"trust_remote_code": True},
        **more,
    )


FAMILIES = (
    _chat(
        "internvl2",
        "InternLM2ForCausalLM",
        ("OpenGVLab/InternVL2-2B", "OpenGVLab/InternVL2-8B", "OpenGVLab/InternVL2_5-8B"),
    ),
    _chat(
        "internvl3",
        "Qwen2ForCausalLM",
        ("OpenGVLab/InternVL2_5-4B", "OpenGVLab/InternVL3-2B", "OpenGVLab/InternVL3-8B"),
        video="<video>",
    ),
    _chat("internvl2-llama3", "LlamaForCausalLM", ("OpenGVLab/InternVL2-Llama3-76B",)),
    _chat(
        "internvl3.5",
        "Qwen3ForCausalLM",
        ("OpenGVLab/InternVL3_5-4B", "OpenGVLab/InternVL3_5-8B"),
        video="<video>",
    ),
    Family(
        name="qianfan-ocr",
        architecture="QianfanOCRForConditionalGeneration",
        decoder="Qwen3Model",
        tower="InternViT",
        hub=("baidu/Qianfan-OCR",),
        write=_write_qianfan,
        language_model=_chat_language_model,
        image="<image>",
        sizes=SIZES,
    ),
    Family(
        name="internvl-hf-llama",
        architecture="InternVLForConditionalGeneration",
        decoder="LlamaModel",
        tower="InternViT",
        hub=(),
        write=lambda folder: _write_transformers(folder, LlamaConfig(**DECODER)),
        image="<IMG_CONTEXT>",
        video="<video>",
        sizes=SIZES,
    ),
    Family(
        name="internvl3-hf",
        architecture="InternVLForConditionalGeneration",
        decoder="Qwen2Model",
        tower="InternViT",
        hub=("OpenGVLab/InternVL3-2B-hf", "OpenGVLab/InternVL3-8B-hf"),
        write=lambda folder: _write_transformers(folder, Qwen2Config(**DECODER)),
        image="<IMG_CONTEXT>",
        video="<video>",
        sizes=SIZES,
    ),
    Family(
        name="internvl3.5-hf",
        architecture="InternVLForConditionalGeneration",
        decoder="Qwen3Model",
        tower="InternViT",
        hub=("OpenGVLab/InternVL3_5-8B-HF",),
        write=lambda folder: _write_transformers(folder, Qwen3Config(**DECODER, head_dim=32)),
        image="<IMG_CONTEXT>",
        video="<video>",
        sizes=SIZES,
    ),
)
