"""Lines of a batch file."""

from __future__ import annotations

import json
from typing import Any

from tests.server.bad_input import CHAT


def line(custom_id: str, url: str = CHAT, **body: Any) -> str:
    """A request, to the chat route unless told otherwise."""
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})
