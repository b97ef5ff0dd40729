"""A second model of real parts: SmolLM2-135M-Instruct, a ViT-S/14, and a projector trained here.

The parts are fetched from PyPI by version and hash; what was trained is in this folder.
"""
