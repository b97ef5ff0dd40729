"""The architectures that we serve reduced, and where our class for each is.

Adding one is a class with ``ReductionMixin`` and a line here; the conformance test in
``tests/vtr_vllm/engine`` then covers it.
"""

SUPPORTED_ARCHITECTURES = {
    "LlavaForConditionalGeneration": "vtr_vllm.engine.llava:ReducedLlava",
}
