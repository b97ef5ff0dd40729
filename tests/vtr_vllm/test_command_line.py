"""Command lines that somebody else parses: what they set, and what of them may be shown."""

from __future__ import annotations

import pytest

from vtr_vllm.command_line import is_on, masked


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("serve m --api-key K L --port 80", "serve m --api-key *** *** --port 80"),
        ("serve m --api_key=K --hf-token=T", "serve m --api_key=*** --hf-token=***"),
        ("serve m --hf_token T -tp 2", "serve m --hf_token *** -tp 2"),
        ("serve m --hf-tok T --api-k=K", "serve m --hf-tok *** --api-k=***"),
        ("serve m --watermark-config.key 5", "serve m --watermark-config.key ***"),
        ("serve m --host h --api-server-count 2", "serve m --host h --api-server-count 2"),
    ],
)
def test_what_is_secret_is_not_shown(given: str, shown: str) -> None:
    assert " ".join(masked(given.split())) == shown


def test_what_vllm_leaves_out_of_its_log_is_secret() -> None:
    utils = pytest.importorskip("vllm.entrypoints.serve.utils.api_utils")
    for name in utils._SENSITIVE_ARG_FIELDS:
        flag = f"--{name.replace('_', '-')}"
        assert masked([flag, "K"]) == [flag, "***"]


@pytest.mark.parametrize(
    ("given", "on"),
    [
        ("serve m --grpc", True),
        ("--grpc=True serve m", True),
        ("--grpc=False serve m", False),
        ("serve m --grpc-port 5", False),
        ("serve m", False),
    ],
)
def test_a_switch_is_set_by_a_flag_or_by_a_file(given: str, on: bool) -> None:
    assert is_on("--grpc", given.split()) is on
