"""A small trained LLaVA and the synthetic question-answering world it was trained on.

Importing this package needs numpy and Pillow only. ``sample`` gives an image and a question,
``conversation`` several questions one after another, ``prompt`` the text to send with an image, and
``CHECKPOINT`` is the folder of the weights, ``SCHEDULES`` that of schedules found for them.
"""

from pathlib import Path

from vtr_vllm.demo.conversations import Conversation
from vtr_vllm.demo.splits import CONVERSATIONS, SPLITS, Sample, conversation, sample
from vtr_vllm.demo.tokenizer import prompt

CHECKPOINT: Path = Path(__file__).with_name("checkpoint")
"""Folder of the packaged weights in Hugging Face layout."""
SCHEDULES: Path = Path(__file__).with_name("schedules")
"""Folder of the packaged schedules, which nothing is written into."""

__all__ = [
    "CHECKPOINT",
    "CONVERSATIONS",
    "SCHEDULES",
    "SPLITS",
    "Conversation",
    "Sample",
    "conversation",
    "prompt",
    "sample",
]
