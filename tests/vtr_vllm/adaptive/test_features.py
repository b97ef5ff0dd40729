import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_vllm.adaptive import Prompt, features
from vtr_vllm.adaptive.features import BUCKETS, WIDTH

tokens = st.lists(st.integers(0, 200_000), max_size=300)
prompts = st.builds(
    Prompt, tokens.map(tuple), st.lists(st.integers(0, 20_000), max_size=9).map(tuple)
)


@given(prompts)
def test_places_and_values_are_bounded(prompt):
    found = features(prompt)
    assert all(0 <= place < WIDTH for place in found)
    words = [value for place, value in found.items() if place < BUCKETS]
    assert np.isclose(np.square(words).sum(), 1.0 if prompt.text else 0.0)
    assert 0 <= prompt.draw < 1


@given(prompts, tokens)
def test_only_the_end_of_a_long_text_is_looked_at(prompt, before):
    longer = Prompt((*before, *prompt.text), prompt.image_sizes)
    if len(prompt.text) >= 128:
        words = [
            {p: v for p, v in features(each).items() if p < BUCKETS} for each in (prompt, longer)
        ]
        assert words[0] == words[1]
        assert prompt.draw == longer.draw


def test_vision_tokens_are_no_words():
    assert Prompt.of([5, 9, 9, 6, 9], [1, 2, 4], [2, 1]) == Prompt((5, 6), (2, 1))
    assert Prompt.of([5], np.empty(0, np.int64), []) == Prompt((5,), ())


def test_order_of_words_counts():
    assert features(Prompt((1, 2), ())) != features(Prompt((2, 1), ()))


def test_another_process_finds_the_same():
    prompt = Prompt((17, 150_000, 3), (576, 144))
    code = (
        "from vtr_vllm.adaptive import Prompt, features;"
        f"p = {prompt!r}; print(repr((p.draw, features(p))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr((prompt.draw, features(prompt)))


def test_by_hand():
    found = features(Prompt((), (3, 4)))
    assert found == pytest.approx(
        {BUCKETS: 0.0, BUCKETS + 1: np.log2(3) / 16, BUCKETS + 2: np.log2(8) / 16}
    )
