import pytest
import torch
from transformers import LlavaForConditionalGeneration

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.splits import sample
from vtr_vllm.demo.tokenizer import FIRST_VISION
from vtr_vllm.training.demo.evaluate import prepare, score
from vtr_vllm.training.registers.demo.evaluate import CONTROLS, control, with_registers
from vtr_vllm.training.registers.demo.model import CELL_OF_PATCH, END, RegisterModel

SAMPLES = 12


@pytest.fixture(scope="module")
def llava():
    return LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def groups(llava):
    return prepare(llava, [sample("test", i) for i in range(SAMPLES)])


@pytest.mark.parametrize("name", ["last", "random"])
def test_a_control_that_keeps_all_tokens_is_the_untouched_model(llava, groups, name):
    assert control(llava, groups, name, 144, 3) == score(llava, groups)


def test_a_control_that_keeps_one_token_answers_less(llava, groups):
    whole = score(llava, groups)["all"]
    assert all(control(llava, groups, name, 1, 1)["all"] < whole for name in CONTROLS)


def test_pooled_tokens_are_means_of_their_patches():
    """Four of them: each is the mean of nine cells, and stands where the first of its patches was."""
    states = torch.randn(2, END + 3, 128)
    before = states.clone()
    rows = CONTROLS["pooled"](states, 4)
    assert rows.tolist() == sorted(rows.tolist())
    first = (CELL_OF_PATCH < 9).nonzero()[:, 0] + FIRST_VISION
    torch.testing.assert_close(states[:, FIRST_VISION], before[:, first].mean(1))
    others = [i for i in range(END + 3) if i not in rows.tolist()]
    assert torch.equal(states[:, others], before[:, others])


def test_registers_of_an_untrained_model_are_scored(llava, groups):
    model = RegisterModel(llava, 4, (4,))
    found = with_registers(model, groups, 4, 3)
    assert 0 <= found["all"] < score(llava, groups)["all"]
