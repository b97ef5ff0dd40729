"""The closed vocabulary and the prompt."""

import pytest

from vtr_vllm.demo import SPLITS, prompt, sample
from vtr_vllm.demo.tokenizer import IDS, UNK, VOCABULARY, VOCABULARY_SIZE, decode, encode
from vtr_vllm.demo.world import CATEGORIES, COLOR_NAMES


def test_questions_and_answers_are_in_the_vocabulary() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY) <= VOCABULARY_SIZE
    for split in SPLITS:
        for index in range(50):
            item = sample(split, index)
            assert IDS[UNK] not in encode(prompt(item.question))
            assert len(encode(item.answer)) == 1
            assert decode(encode(item.answer)) == item.answer


def test_every_word_survives_a_round_trip() -> None:
    words = [w for w in VOCABULARY if not w.startswith("<")]
    assert decode(encode(" ".join(words))).split() == " ".join(words).split()
    assert encode("Is there an elephant?").count(IDS[UNK]) == 2
    assert set(CATEGORIES) | set(COLOR_NAMES) <= set(VOCABULARY)


def test_prompt_has_one_placeholder_per_image() -> None:
    assert prompt("Is there a 9?") == "USER: <image>\nIs there a 9? ASSISTANT:"
    assert prompt("Is there a 9?", images=0) == "USER: Is there a 9? ASSISTANT:"
    assert prompt("Is there a 9?", images=2).count("<image>") == 2
    with pytest.raises(ValueError, match="negative"):
        prompt("Is there a 9?", images=-1)
