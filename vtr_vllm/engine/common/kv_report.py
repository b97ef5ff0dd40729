"""KV blocks held, and saved by reduction: what the front end asks and the scheduler answers."""

from dataclasses import dataclass

UTILITY = "vtr_kv_report"
"""The method of ``EngineCore`` that answers; vLLM's clients call it by its name."""


@dataclass(frozen=True)
class KVReport:
    """KV blocks of all bands of an engine, or of several engines."""

    total: int
    free: int
    """Not held by a live request; the prefix cache may use them."""
    held: int
    saved: int
    """What the live reduced requests would hold beyond that at full budget, were none of it
    shared through the prefix cache."""

    def __add__(self, other: "KVReport") -> "KVReport":
        return KVReport(
            self.total + other.total,
            self.free + other.free,
            self.held + other.held,
            self.saved + other.saved,
        )
