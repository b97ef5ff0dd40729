"""Images that come back: at the same place, behind the same tokens, within the reach of a cache."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtr_vllm.engine.frontend.returning_images import Prefix, ReturningImages, prefixes_of


def image(name, start, length, is_embed=None, modality="image"):
    position = SimpleNamespace(
        offset=start, length=length, is_embed=is_embed, get_num_embeds=lambda: length
    )
    return SimpleNamespace(identifier=name, mm_position=position, modality=modality)


def prompt(tokens, *images, salt=None, adapter=None):
    lora = None if adapter is None else SimpleNamespace(lora_int_id=adapter)
    return SimpleNamespace(
        prompt_token_ids=tokens, mm_features=list(images), cache_salt=salt, lora_request=lora
    )


CAT = image("cat", 2, 4)
DOG = image("dog", 8, 3)
TOKENS = [1, 2, *[9] * 4, 3, 4, *[9] * 3, 5]


def test_a_prompt_is_cut_behind_each_image():
    one, two = prefixes_of(prompt(TOKENS, CAT, DOG))
    assert (one.tokens, one.vision) == (6, 4)
    assert (two.tokens, two.vision) == (5, 3)
    assert prefixes_of(prompt([1, 2, 3])) == []


def test_the_next_turn_begins_as_the_last_did():
    known = ReturningImages(1000)
    first, later = prompt(TOKENS[:8], CAT), prompt([*TOKENS, 6, 7], CAT, DOG)
    assert known.returning(prefixes_of(first)) == 0
    known.note(prefixes_of(first))
    assert known.returning(prefixes_of(first)) == 4
    assert known.returning(prefixes_of(later)) == 4
    known.note(prefixes_of(later))
    assert known.returning(prefixes_of(later)) == 7


@pytest.mark.parametrize(
    "other",
    [
        prompt([7, *TOKENS[1:]], CAT),
        prompt(TOKENS, image("bird", 2, 4)),
        prompt(TOKENS, CAT, salt="mine"),
        prompt(TOKENS, CAT, adapter=1),
        prompt([1, *TOKENS[1:]], image("cat", 3, 4)),
    ],
)
def test_nothing_returns_behind_what_differs(other):
    known = ReturningImages(1000)
    known.note(prefixes_of(prompt(TOKENS, CAT)))
    assert known.returning(prefixes_of(other)) == 0


def test_what_a_cache_could_not_hold_does_not_return():
    known = ReturningImages(12)
    cat, dog = (prefixes_of(prompt(TOKENS, image(name, 2, 4))) for name in ("cat", "dog"))
    long = prefixes_of(prompt(list(range(40)), image("long", 0, 40)))
    known.note(cat)
    known.note(dog)
    known.note(cat)
    known.note(prefixes_of(prompt(TOKENS, image("bird", 2, 4))))
    assert (known.returning(cat), known.returning(dog)) == (4, 0)
    known.note(long)
    assert (known.returning(cat), known.returning(long)) == (0, 0)


def test_of_a_prompt_its_end_goes_first():
    known = ReturningImages(11)
    known.note(prefixes_of(prompt(TOKENS, CAT, DOG)))
    known.note([Prefix(b"other", 3, 3)])
    assert known.returning(prefixes_of(prompt(TOKENS, CAT, DOG))) == 4


prefixes = st.lists(
    st.builds(Prefix, st.binary(min_size=1, max_size=1), st.integers(1, 9), st.just(1)), max_size=4
)


@given(st.lists(prefixes, max_size=30), st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_never_more_is_held_than_fits(prompts, capacity):
    known = ReturningImages(capacity)
    for one in prompts:
        known.note(one)
        assert known._held == sum(known._known.values()) <= capacity
