"""The server does not start where a client's word would reach what is another's."""

from __future__ import annotations

import pytest

from vtr_server.gate.shared_names import refuse_shared_names
from vtr_vllm.errors import ConfigurationError

STORE, PLAIN = "VLLM_ENABLE_RESPONSES_API_STORE", "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"


@pytest.mark.parametrize("has_keys", [False, True])
@pytest.mark.parametrize("environment", [{}, {STORE: "0", PLAIN: "0"}, {STORE: ""}])
def test_vllms_defaults_pass(environment: dict[str, str], has_keys: bool) -> None:
    refuse_shared_names(environment, has_keys)


def test_a_store_that_asks_nobody_for_a_key_is_refused_where_there_are_keys() -> None:
    refuse_shared_names({STORE: "1"}, has_keys=False)
    with pytest.raises(ConfigurationError, match=STORE):
        refuse_shared_names({STORE: "1"}, has_keys=True)


def test_request_ids_without_vllms_random_part_are_refused() -> None:
    for has_keys in (False, True):
        with pytest.raises(ConfigurationError, match=PLAIN):
            refuse_shared_names({PLAIN: "1"}, has_keys)
