"""The architectures that we serve reduced, and where our class for each is.

Adding one is a class with ``ReductionMixin`` and a line here, and its case in
``tests/vtr_vllm/engine/test_decoder.py``: reduced runs must equal the reference.
"""

SUPPORTED_ARCHITECTURES = {
    "LlavaForConditionalGeneration": "vtr_vllm.engine.llava:ReducedLlava",
}
