"""The demo model with 16 learned registers, of which the first 8 or 4 do too, alone from layer 1, 2 or 3 on
(Victor, arXiv 2410.14072): what differs from its weights."""

from pathlib import Path

DELTA: Path = Path(__file__).with_name("delta.safetensors")
"""The decoder's weights and the registers; all else is as in ``vtr_vllm.demo.CHECKPOINT``."""
SCHEDULES: Path = Path(__file__).with_name("schedules")

__all__ = ["DELTA", "SCHEDULES"]
