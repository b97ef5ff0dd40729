"""What a training can be asked, and where its cuts lie."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.training.atp.options import AtpOptions, cut_layers, default_layers


def asked(**values: object) -> AtpOptions:
    return AtpOptions(**{"model": "demo", "data": "a.jsonl", "target": 0.25, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(32, (4, 14, 24)), (12, (2, 5, 9)), (40, (5, 18, 30)), (6, (1, 3, 4)), (2, (1,))],
)
def test_the_layers_of_the_paper_by_depth(depth: int, layers: tuple[int, ...]) -> None:
    assert default_layers(depth) == layers
    assert cut_layers(asked(target=0.9), depth) == layers


def test_layers_as_asked() -> None:
    assert cut_layers(asked(layers=[1, 7]), 12) == (1, 7)


@pytest.mark.parametrize(("layers", "depth"), [([0, 3], 12), ([3, 12], 12), ([], 1)])
def test_layers_outside_the_decoder_are_refused(layers: list[int], depth: int) -> None:
    with pytest.raises(ConfigurationError, match=f"allowed are 1 to {depth - 1}"):
        cut_layers(asked(layers=layers), depth)


def test_a_target_below_the_full_layers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"2 of 12 layers run in full.*0\.1667"):
        cut_layers(asked(target=0.153), 12)
    assert cut_layers(asked(target=0.153, layers=[1, 5, 9]), 12) == (1, 5, 9)


@pytest.mark.parametrize(
    "values", [{"layers": [3, 3]}, {"target": 1.0}, {"steps": 0}, {"mask": "none"}, {"typo": 1}]
)
def test_nonsense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        asked(**values)
