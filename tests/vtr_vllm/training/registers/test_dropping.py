import torch

from vtr_vllm.training.attention import Rows
from vtr_vllm.training.registers.dropping import DroppingPass


def test_who_sees_whom():
    """A word, two image tokens, two registers, a word; of the registers the first one stays."""
    rows = Rows(
        vision=torch.tensor([[1, 2, 3, 4]]),
        asking=torch.tensor([[False] * 5 + [True]]),
        last=torch.tensor([5]),
    )
    dropping = DroppingPass(rows, registers=2, kept=1, layer=1)
    causal = torch.ones(6, 6).tril().bool()
    assert torch.equal(dropping.bias(0)[0, 0] == 0, causal)
    behind = dropping.bias(1)[0, 0] == 0
    assert behind[5].tolist() == [True, False, False, True, False, True]
    assert behind[3].tolist() == [True, False, False, True, False, False]
    assert behind.diagonal().all()  # what is gone sees itself, or its softmax would be no number
    assert not dropping.looks_at(0)
