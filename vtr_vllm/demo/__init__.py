"""A small trained LLaVA and the synthetic question-answering world it was trained on.

Importing this package needs numpy and Pillow only. ``sample`` gives images and questions,
``prompt`` the text to send with them, and ``CHECKPOINT`` is the folder of the weights.
"""

from pathlib import Path

from vtr_vllm.demo.splits import SPLITS, Sample, sample
from vtr_vllm.demo.tokenizer import prompt

CHECKPOINT: Path = Path(__file__).with_name("checkpoint")
"""Folder of the packaged weights in Hugging Face layout."""

__all__ = ["CHECKPOINT", "SPLITS", "Sample", "prompt", "sample"]
