"""What the survey cannot read off vLLM's source by its rules."""

from __future__ import annotations

SIGNS = {
    "multi-head latent attention (MLA)": r"MultiHeadLatentAttention|MLAAttention|kv_lora_rank",
    "a recurrent state": r"MambaMixer|GatedDeltaNet|ShortConv",
    "chunked attention": r"ChunkedLocalAttention|attention_chunk_size",
    "sliding windows": r"per_layer_sliding_window|sliding_window=",
    "sparse attention": r"[Ss]parse_?[Aa]ttention",
    "embeddings that it scales itself": r"embed_scale|normalizer|embedding_multiplier",
}
"""By what a decoder has: how its file says so. Only for decoders that we do not serve."""

DECODERS: dict[str, tuple[str, ...]] = {
    "AriaForConditionalGeneration": ("AriaTextModel",),
    "BeeForConditionalGeneration": ("Qwen3Model",),
    "Blip2ForConditionalGeneration": ("OPTModel",),
    "Cohere2VisionForConditionalGeneration": ("CohereModel",),
    "Cosmos3ForConditionalGeneration": ("Qwen3LLMModel",),
    "DeepseekOCR2ForCausalLM": ("DeepseekV2Model",),
    "DeepseekOCRForCausalLM": ("DeepseekV2Model",),
    "DeepseekVLV2ForCausalLM": ("DeepseekV2Model",),
    "DotsOCRForCausalLM": ("Qwen2Model",),
    "Eagle2_5_VLForConditionalGeneration": ("Qwen2Model",),
    "GLM4VForCausalLM": ("ChatGLMModel",),
    "Gemma3nForConditionalGeneration": ("Gemma3nTextModel",),
    "Gemma4ForConditionalGeneration": ("Gemma4Model",),
    "Gemma4UnifiedForConditionalGeneration": ("Gemma4Model",),
    "H2OVLChatModel": ("LlamaModel", "MistralModel"),
    "HfMoondream": ("Moondream3TextModel",),
    "InternS1ForConditionalGeneration": ("Qwen3Model", "Qwen3MoeModel"),
    "KeyeVL1_5ForConditionalGeneration": ("Qwen3Model",),
    "LightOnOCRForConditionalGeneration": ("Qwen3Model",),
    "Llama4ForConditionalGeneration": ("Llama4Model",),
    "Llama_Nemotron_Nano_VL": ("LlamaModel",),
    "LlavaNextVideoForConditionalGeneration": ("LlamaModel", "MistralModel"),
    "MiniCPMO": ("Qwen2Model", "Qwen3Model"),
    "MiniCPMV": ("LlamaModel", "MiniCPMModel", "Qwen2Model", "Qwen3Model"),
    "Moondream3ForCausalLM": ("Moondream3TextModel",),
    "NVLM_D": ("Qwen2Model",),
    "OpenPanguVLForConditionalGeneration": ("OpenPanguEmbeddedModel",),
    "OpenVLAForActionPrediction": ("LlamaModel",),
    "Ovis": ("Gemma2Model", "LlamaModel", "Qwen2Model"),
    "Ovis2_5": ("Qwen3Model",),
    "Ovis2_6ForCausalLM": ("Qwen3Model",),
    "Ovis2_6_MoeForCausalLM": ("Qwen3MoeModel",),
    "PaliGemmaForConditionalGeneration": ("Gemma2Model", "GemmaModel"),
    "PixtralForConditionalGeneration": ("MistralModel",),
    "Qwen3OmniMoeForConditionalGeneration": ("Qwen3MoeLLMModel",),
    "RForConditionalGeneration": ("Qwen3Model",),
    "SkyworkR1VChatModel": ("Qwen2Model",),
    "SmolVLMForConditionalGeneration": ("LlamaModel",),
    "Step3VLForConditionalGeneration": ("Step3TextModel",),
    "Step3p7ForConditionalGeneration": ("Step3p5Model",),
    "StepVLForConditionalGeneration": ("Qwen3Model",),
    "UnlimitedOCRForCausalLM": ("DeepseekV2Model",),
}
"""The decoders that checkpoints name in their configuration, where vLLM's code does not."""

PREFIX = "image tokens see each other (prefix-LM mask), and dropping one changes the others"
OWN = "Transformers' own modelling code runs it, not a decoder of vLLM's"
AUDIO = "no images: it hears audio only"
MIXED = "it also hears, and audio would count as vision tokens: nobody has looked at that"
REASONS: dict[str, str] = {
    "BagelForConditionalGeneration": PREFIX,
    "Emu3ForConditionalGeneration": OWN,
    "Gemma3ForConditionalGeneration": f"Gemma3Model has sliding windows; {PREFIX}",
    "HfMoondream": PREFIX,
    "HunYuanVLForConditionalGeneration": OWN,
    "MiniCPMO": MIXED,
    "Molmo2ForConditionalGeneration": PREFIX,
    "Moondream3ForCausalLM": PREFIX,
    "NemotronParseForConditionalGeneration": "an encoder-decoder: images come in by cross attention",
    "OpenVLAForActionPrediction": "it answers with the actions of a robot, not with text",
    "PaliGemmaForConditionalGeneration": PREFIX,
    "Phi4MMForCausalLM": "images switch on a LoRA adapter of its own, and it also hears",
    "Qwen2_5OmniForConditionalGeneration": MIXED,
    "Qwen2_5OmniModel": MIXED,
    "Qwen3ASRForConditionalGeneration": AUDIO,
    "Qwen3ASRRealtimeGeneration": AUDIO,
    "Qwen3OmniMoeForConditionalGeneration": MIXED,
    "TransformersMultiModalForCausalLM": OWN,
    "TransformersMultiModalMoEForCausalLM": OWN,
    "VibeVoiceAsrForConditionalGeneration": AUDIO,
}
"""Why not, where it is not the decoder's form."""
