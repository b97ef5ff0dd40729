"""What GET /metrics answers: the numbers of all API server processes, in the form that is preferred."""

import os
from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def exposition(accept: str, names: Sequence[str] = ()) -> tuple[bytes, str]:
    """What GET /metrics answers, vLLM's metrics too, and its content type: OpenMetrics where the
    header ``accept`` prefers it. With ``names``, of these samples alone."""
    registry = _registry()
    wanted = registry.restricted_registry(names) if names else registry
    encode, content_type = choose_encoder(accept)
    if (
        "openmetrics" in content_type
    ):  # by any other escaping it breaks vLLM's colons, valid in both
        encode, _ = choose_encoder(f"{OPEN_METRICS}; escaping=allow-utf-8")
        content_type = f"{OPEN_METRICS}; charset=utf-8"
    return encode(wanted), content_type


def requests_inside() -> int:
    """Requests inside, of all API server processes."""
    return int(_registry().get_sample_value("vtr_in_flight_requests") or 0)


def _registry() -> CollectorRegistry:
    """As vLLM has it: of all processes, where each writes its numbers into files."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    # its collector cannot say what it has, so that a choice by names would leave it out
    registry = CollectorRegistry(support_collectors_without_names=True)
    MultiProcessCollector(registry)
    return registry
