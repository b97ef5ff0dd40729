"""Refused at start-up by name, from vLLM's own arguments."""

from __future__ import annotations

import pytest

from tests.modes.refusals import config, refusal_of
from tests.modes.table import REFUSED, Refused
from vtr_vllm.engine.common.config import _REFUSED, check_vllm_config


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line.name)
def test_refused_by_name_and_by_no_other(line: Refused) -> None:
    assert refusal_of(line) == (
        f"VTR does not support {line.name}; start without, or set VLLM_PLUGINS='' to serve this"
        " model without VTR"
    )


def test_every_refusal_has_its_line() -> None:
    assert [line.name for line in REFUSED] == [name for name, _ in _REFUSED]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"kv_cache_dtype": "fp8"},
        {"kv_cache_dtype": "fp8_e5m2"},
        {"kv_cache_dtype": "bfloat16"},
        {"video_pruning_rate": 0.0},
        {"enable_mm_embeds": True},
        {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
        {"enable_lora": True},
        {"language_model_only": True},
    ],
    ids=str,
)
def test_what_works_is_not_refused(arguments: dict[str, object]) -> None:
    check_vllm_config(config(**arguments))
