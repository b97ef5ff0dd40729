"""VTR: layer-wise vision-token reduction inside vLLM."""

__version__ = "0.1.0"
