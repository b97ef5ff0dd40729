from pathlib import Path

import pytest
import torch

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.training.state import load_state, save_state


def test_a_state_is_of_what_was_asked(tmp_path: Path) -> None:
    asked = {"seed": 1, "layers": [1, 2], "lora": None}
    assert load_state(tmp_path, asked) is None
    save_state(tmp_path, {"asked": asked, "step": 3, "weights": torch.ones(2)})
    state = load_state(tmp_path, asked)
    assert state is not None
    assert state["step"] == 3
    with pytest.raises(ConfigurationError, match="seed 1 and not 2"):
        load_state(tmp_path, asked | {"seed": 2})
    (tmp_path / "training.pt").write_bytes(b"no")
    with pytest.raises(ConfigurationError, match="no state of a training"):
        load_state(tmp_path, asked)
