"""LLaVA-1.5 form: CLIP or SigLIP tower, MLP projector, Llama-like decoder."""

from vllm.model_executor.models import llava
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtr_vllm.engine.model import ReductionMixin


# A subclass of a multimodal model must carry the processor registration of its parent.
@MULTIMODAL_REGISTRY.register_processor(
    llava._build_llava_or_pixtral_hf_processor,
    info=llava._build_llava_or_pixtral_hf_info,
    dummy_inputs=llava.LlavaDummyInputsBuilder,
)
class ReducedLlava(ReductionMixin, llava.LlavaForConditionalGeneration):
    """vLLM's LLaVA, reducible."""
