"""ATP's modules that an engine was started with: for which requests they can speak."""

from functools import cache
from pathlib import Path

from vllm.config import VllmConfig

from vtr_vllm.atp.facts import Facts
from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.engine.common.config import model_geometry
from vtr_vllm.engine_settings import EngineSettings


def folder_of(vllm_config: VllmConfig) -> Path | None:
    """Where their files are; None: there are none. Raises ConfigurationError for settings that cannot be read."""
    return EngineSettings.of(vllm_config.additional_config).atp


def facts_of(vllm_config: VllmConfig) -> Facts | None:
    """What is known of them; None: there are none. Raises ConfigurationError for files that cannot be read."""
    folder = folder_of(vllm_config)
    return None if folder is None else _facts(folder)


def check_modules(vllm_config: VllmConfig) -> None:
    """Refuse modules of another model; raises ConfigurationError or GeometryMismatch."""
    facts = facts_of(vllm_config)
    if facts is None:
        return
    model = vllm_config.model_config
    facts.check_served()
    facts.check_geometry(model_geometry(vllm_config))
    cache = vllm_config.load_config.download_dir
    facts.check_checkpoint(checkpoint_digest(model.model, model.revision, cache))


@cache  # asked for each request, and read once: what changes on disk is for the next start
def _facts(folder: Path) -> Facts:
    return Facts.load(folder)
