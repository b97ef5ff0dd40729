"""No engine serves past its settings.

``vtr serve --settings FILE`` puts the file's path into vLLM's additional configuration, which every
process reads. What the file says (keys, bounds, limits) is held in the API server's process alone,
by our endpoint plugin, and vLLM starts without that plugin where VLLM_PLUGINS does not name it, where
it cannot be imported, and behind its gRPC and Rust front ends. So, where settings are configured:

- a worker does not start in a process that has not loaded our plugin (``check_worker``);
- an API server does not start without the endpoint plugin (``frontend/endpoint_guard.py``);
- the scheduler runs no request before a front end of ours has greeted it (``GREET``).

The last holds whatever the front end is and wherever it runs: another node, one of several.
"""

import os

from vllm.config import VllmConfig

from vtr_vllm.engine.common.config import is_active
from vtr_vllm.engine_settings import PLUGIN, SCHEDULER_CLS, EngineSettings
from vtr_vllm.errors import ConfigurationError

__all__ = ["GREET", "check_worker", "has_settings", "note_plugin", "no_front_end"]

GREET = "vtr_greet"
"""The method of ``EngineCore`` by which a front end says that it holds the settings."""

_loaded = False


def note_plugin() -> None:
    """The general plugin is loaded in this process."""
    global _loaded
    _loaded = True


def has_settings(vllm_config: VllmConfig) -> bool:
    """Whether a settings file is configured."""
    return EngineSettings.of(vllm_config.additional_config).settings is not None


def check_worker(vllm_config: VllmConfig) -> None:
    """Refuse to load a model that would be served past its settings; raises ConfigurationError."""
    if not has_settings(vllm_config):
        return
    if not _loaded:
        raise ConfigurationError(no_front_end("this worker's process did not load the plugin"))
    if not is_active(vllm_config):
        raise ConfigurationError(
            "additional-config vtr settings is given without --scheduler-cls"
            f" {SCHEDULER_CLS}, so nothing would be held to it; start with `vtr serve`, or give both"
        )


def no_front_end(what: str) -> str:
    """The message of a start, or of a request, without our front end before it."""
    plugins = os.environ.get("VLLM_PLUGINS")
    given = "is not set" if plugins is None else f"is {plugins!r}"
    return (
        f"additional-config vtr settings names keys and limits that nobody would hold: {what}."
        f" VLLM_PLUGINS {given}: it must name {PLUGIN} on every node, the endpoint plugin {PLUGIN} must"
        " import (the log above says why it does not), and neither --grpc nor"
        " VLLM_USE_RUST_FRONTEND may be set; start with `vtr serve`, or leave settings out"
    )
