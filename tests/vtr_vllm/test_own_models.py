"""The models that commands take by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.own_models import OWN_MODELS


@pytest.mark.parametrize("name", OWN_MODELS)
def test_one_that_is_not_here_names_the_command_that_makes_it(name: str, tmp_path: Path) -> None:
    model = replace(OWN_MODELS[name], checkpoint=tmp_path / "none")
    with pytest.raises(ConfigurationError, match=f"^{name}: .*; run `make {name}-model`"):
        model.flags()
