"""The models of this project that commands take by name: where they lie, and how they are served."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vtr_vllm.errors import ConfigurationError

__all__ = ["CHECKPOINT", "DEMO_SCHEDULES", "OWN_MODELS", "OwnModel"]

_PACKAGE = Path(__file__).parent  # importing demo would load numpy
CHECKPOINT = _PACKAGE / "demo" / "checkpoint"
DEMO_SCHEDULES = CHECKPOINT.with_name("schedules")


@dataclass(frozen=True)
class OwnModel:
    """One of them; served on this machine alone and under its name unless flags say otherwise."""

    name: str
    checkpoint: Path
    """Of a relative one: where the command runs."""
    schedules: Path
    made_by: str
    """The command that writes the checkpoint."""
    on_gpu: Mapping[str, str] = field(default_factory=dict)
    """Flags there; an empty value is a switch."""

    def check(self) -> None:
        """Raises ConfigurationError where there is no checkpoint."""
        if not self.checkpoint.is_dir():
            raise ConfigurationError(
                f"{self.name}: there is no checkpoint at {self.checkpoint}; run `{self.made_by}`"
            )

    def flags(self) -> dict[str, str]:
        """Flags of ``vtr serve``; raises ConfigurationError where there is no checkpoint."""
        self.check()
        flags = {"--served-model-name": self.name, "--host": "127.0.0.1"}
        if _on_cpu():
            # Not every CPU computes in bf16; float32 is as fast for so small models, and alike on all.
            return flags | {"--enforce-eager": "", "--block-size": "32", "--dtype": "float32"}
        return flags | dict(self.on_gpu)

    def environment(self) -> dict[str, str]:
        """What the server's environment gains where it does not have it."""
        return {
            "HF_HUB_OFFLINE": "1",  # the files are here
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_MAX_IMAGE_PIXELS": str(4096 * 4096),  # vLLM's own limit decodes to half a GB
        }


OWN_MODELS = {
    model.name: model
    for model in (
        OwnModel(
            *("demo", CHECKPOINT, DEMO_SCHEDULES, "make demo-model"),
            {"--enforce-eager": "", "--gpu-memory-utilization": "0.2"},
        ),
        OwnModel(
            *(
                "photo",
                Path("build/photo-model"),
                _PACKAGE / "photo" / "schedules",
                "make photo-model",
            ),
            {"--gpu-memory-utilization": "0.2"},
        ),
    )
}


def _on_cpu() -> bool:
    """Whether the installed vLLM is its CPU build."""
    names = {dist.name.lower() for dist in importlib.metadata.distributions(name="vllm-cpu")}
    return bool(names)
