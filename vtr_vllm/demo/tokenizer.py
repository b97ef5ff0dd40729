"""The demo model's words: a closed vocabulary, one token per word, and the prompt format."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vtr_vllm.demo.sprites import GLYPHS
from vtr_vllm.demo.world import CATEGORIES, COLOR_NAMES, COLUMNS, NOTHING, ROWS, VISION_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
MARK = "mark"  # names the distractors in the tower's training; no question has it
_WORDS = (
    *("What", "color", "is", "the", "in", "row", "column", "has", "same", "as"),
    *("Which", "Is", "there", "a", "yes", "no"),
)
VOCABULARY: tuple[str, ...] = (
    *(PAD, BOS, EOS, UNK, IMAGE, "\n", "USER:", "ASSISTANT:", "?", ","),
    *GLYPHS,
    *COLOR_NAMES,
    *ROWS,
    *COLUMNS,
    *CATEGORIES,
    NOTHING,
    MARK,
    *_WORDS,
)
VOCABULARY_SIZE = 128  # rounded up for the embedding table
IDS = {word: i for i, word in enumerate(VOCABULARY)}
PATTERN = r"<image>|USER:|ASSISTANT:|\n|\w+|[^\w\s]"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] != 'text' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] != 'text' %}"
    "{% if loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def prompt(question: str, images: int = 1) -> str:
    """Return the raw prompt text with ``images`` placeholders.

    It is what the chat template gives, less the leading ``<s>``, which tokenizing adds.

    Raises ValueError for a negative number of images.
    """
    if images < 0:
        raise ValueError(f"the number of images is negative: {images}")
    head = IMAGE * images + "\n" if images else ""
    return f"USER: {head}{question} ASSISTANT:"


def encode(text: str) -> list[int]:
    """Return the token ids of ``text`` without a start token; unknown words give ``<unk>``."""
    return [IDS.get(word, IDS[UNK]) for word in re.findall(PATTERN, text)]


def decode(ids: list[int]) -> str:
    """Return the words of ``ids`` joined by spaces."""
    return " ".join(VOCABULARY[i] for i in ids)


PREFIX: tuple[int, ...] = (
    IDS[BOS],
    IDS["USER:"],
    *[IDS[IMAGE]] * VISION_TOKENS,
    IDS["\n"],
)
"""Ids before the question, with the placeholder expanded to all vision tokens."""
FIRST_VISION = 2  # position of the first vision token in PREFIX


def question_ids(question: str) -> list[int]:
    """Return the ids that follow ``PREFIX``: the question and the assistant's cue."""
    return [*encode(question), IDS["ASSISTANT:"]]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the same tokenizer for Hugging Face transformers, to be saved with the model."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(IDS, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, IDS[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=1024,
    )
