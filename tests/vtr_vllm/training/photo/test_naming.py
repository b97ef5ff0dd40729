"""The projector learns the words for what tokens show."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from vtr_vllm.photo.parts import PATCH, SIDE
from vtr_vllm.photo.scenes import Thing
from vtr_vllm.training.photo.naming import Naming
from vtr_vllm.training.photo.pictures import Picture

NAMES = ("dog", "cat", "cup")
WIDTH, HIDDEN = 8, 12
TOKENS = (SIDE // PATCH) ** 2


class Words:
    """A tokenizer of one token a word."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool) -> Words:
        assert not add_special_tokens
        self.input_ids = [self.known.setdefault(word, len(self.known)) for word in text.split()]
        return self


def things(name: str, cell: int) -> tuple[Thing, ...]:
    left, top = cell % 3 * 74, cell // 3 * 74
    return (Thing(name, cell, (left, top, left + 70, top + 70)),)


def states(shown: tuple[Thing, ...]) -> torch.Tensor:
    """A tower that sees names in three directions and nothing else."""
    found = torch.zeros(TOKENS, WIDTH)
    for thing in shown:
        found[thing.patches(), NAMES.index(thing.name)] = 1.0
    return found


def test_tokens_become_the_words_for_what_they_show() -> None:
    torch.manual_seed(0)
    table, words = torch.randn(40, HIDDEN), Words()
    shown = [things(name, cell) for cell, name in enumerate(NAMES * 3)]
    pictures = [Picture(lambda: None, (), "", there) for there in shown]  # type: ignore[arg-type, return-value]
    naming = Naming(words, table, pictures)
    projector = nn.Linear(WIDTH, HIDDEN)
    seen = [states(there) for there in shown]
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.05)
    first = naming.loss(projector, seen, shown).item()
    for _ in range(120):
        optimizer.zero_grad()
        last = naming.loss(projector, seen, shown)
        last.backward()
        optimizer.step()
    assert last.item() < first / 2
    middle = table.mean(0)
    known = torch.stack([table[words.known[name]] for name in ("background", *NAMES)]) - middle
    for there, state in zip(shown, seen, strict=True):
        said = functional.normalize(projector(state) - middle, dim=-1) @ known.T
        wanted = torch.zeros(TOKENS, dtype=torch.long)
        wanted[there[0].patches()] = 1 + NAMES.index(there[0].name)
        assert torch.equal(said.argmax(-1), wanted)
