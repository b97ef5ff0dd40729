"""What becomes of an image whose first request never reached the engine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.bad_input import CHAT, chat_body, data_url
from tests.server.conftest import NAME, Server
from tests.server.pictures import image
from tests.server.robustness.watching import told

pytestmark = pytest.mark.engine

REFUSALS: tuple[dict[str, Any], ...] = (
    {"vtr": {"max_flops_fraction": 0.001}},
    {"vtr": {"budget": 0.5}, "prompt_logprobs": 1},
    {"logit_bias": {"999999": 1}},
    {"structured_outputs": {"regex": "("}},
)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("number", range(len(REFUSALS)))
def test_a_refused_request_does_not_take_its_image_from_the_next(
    server: Server, number: int, stream: bool
) -> None:
    url = data_url(image("PNG", (50 + number, 61 + stream)))
    with server.client() as client:
        refused = client.post(CHAT, json=chat_body(NAME, url, **REFUSALS[number]))
        assert refused.status_code == 400, refused.text
        for _ in range(2):
            told(client.post(CHAT, json=chat_body(NAME, url, stream=stream)))
