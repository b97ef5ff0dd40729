"""The architectures, and the decoders in them, that we serve reduced.

Adding one is a name here and an entry in ``tests/families/table.py``, which proves it; no family has
code of its own.
"""

SUPPORTED_ARCHITECTURES = (
    "Glm4vForConditionalGeneration",
    "Glm4vMoeForConditionalGeneration",
    "GlmOcrForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "InternVLChatModel",
    "InternVLForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "QianfanOCRForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)
"""Names in vLLM's registry. A family of another name runs as in stock vLLM, at full budget only."""

SUPPORTED_DECODERS = (
    "Glm4Model",
    "Glm4MoeModel",
    "InternLM2Model",
    "LlamaModel",
    "MistralModel",
    "Qwen2Model",
    "Qwen3LLMModel",
    "Qwen3Model",
    "Qwen3MoeLLMModel",
    "Qwen3MoeModel",
)
"""vLLM's classes whose forward is the loop that ``ReducibleDecoder`` repeats: embeddings, layers of
``layer(positions, hidden, residual)``, deepstack inputs where there are any, final norm."""

CLS_ARCHITECTURES = ("LlavaForConditionalGeneration",)
"""Those whose vision tokens are the patches of a CLIP tower one to one, so that the attention of its
CLS token ranks them."""
