import pytest
import torch
from transformers import LlavaForConditionalGeneration

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.model import decoder_pass
from vtr_vllm.demo.tokenizer import FIRST_VISION, PREFIX
from vtr_vllm.training.demo.batches import embed_prefix
from vtr_vllm.training.registers.demo.model import (
    CELL_OF_PATCH,
    END,
    RegisterModel,
    dropping_pass,
    registers_of_cells,
    slots_of_cells,
)

TEXT = 5


@pytest.fixture(scope="module")
def model():
    llava = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    return RegisterModel(llava, 4, (4, 2))


@pytest.mark.parametrize("count", [1, 4, 8, 16, 36])
def test_each_cell_has_a_slot_of_a_register_of_its_own(count):
    owners, slots = registers_of_cells(count), slots_of_cells(count)
    pairs = set(zip(owners.tolist(), slots.tolist(), strict=True))
    assert len(pairs) == 36
    assert set(owners.tolist()) == set(range(count))
    assert int(slots.max()) == -(-36 // count) - 1


def test_a_cell_is_two_patches_wide_and_high():
    assert CELL_OF_PATCH.view(12, 12)[2:4, 10:12].flatten().tolist() == [11] * 4
    assert CELL_OF_PATCH.bincount().tolist() == [4] * 36


def test_only_the_decoder_and_the_registers_learn(model):
    learning = model.learning()
    assert not any("tower" in n or "projector" in n or "embed" in n for n in learning)
    assert {"registers"} < set(learning)
    assert all(w.requires_grad for w in learning.values())


def test_a_pass_is_that_of_the_rows_that_stay(model):
    """Behind the cut: as if the rest had never been there, with keys and values of the layers behind."""
    torch.manual_seed(0)
    features, text = torch.randn(2, 144, 128), torch.randn(2, TEXT, 128)
    positions = torch.arange(len(PREFIX), len(PREFIX) + TEXT).expand(2, -1)
    size = len(PREFIX) + TEXT
    mask = torch.ones(size, size, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    passed = dropping_pass(model, features, text, positions, mask, 2, 3, torch.tensor([[4], [4]]))

    prefix = embed_prefix(model.words, features)
    own = model.registers.expand(2, -1, -1)
    x = torch.cat([prefix[:, :END], own, prefix[:, END:], text], 1)
    size += 4
    causal = torch.ones(size, size, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    stay = [i for i in range(size) if not (FIRST_VISION <= i < END or END + 2 <= i < END + 4)]
    written = []

    def cut(index, states):
        if index != 2:
            return None
        written.append(states[:, END : END + 2])
        return torch.tensor(stay)

    every = torch.arange(size).expand(2, -1)
    hidden, _ = decoder_pass(model.llava, x, every, causal, cut=cut)
    torch.testing.assert_close(passed.hidden, hidden[:, -TEXT:])
    torch.testing.assert_close(passed.written, written[0])
    assert [a.shape[-1] for a in passed.trace.attention] == [size] * 3 + [len(stay)] * 9
    assert all(float(a.detach().sum(-1).min()) > 0.999 for a in passed.trace.attention)


def test_the_traced_row_is_the_same_before_and_behind_the_cut(model):
    features, text = torch.randn(1, 144, 128), torch.randn(1, TEXT, 128)
    positions = torch.arange(len(PREFIX), len(PREFIX) + TEXT)[None]
    size = len(PREFIX) + TEXT
    mask = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
    passed = dropping_pass(model, features, text, positions, mask, 4, 3, torch.tensor([[TEXT - 1]]))
    # The last row sees all rows that there are, the one before it all but one.
    assert all((a[..., -1] > 0).all() for a in passed.trace.attention)
    passed = dropping_pass(model, features, text, positions, mask, 4, 3, torch.tensor([[TEXT - 2]]))
    assert all((a[..., -1] == 0).all() for a in passed.trace.attention)
