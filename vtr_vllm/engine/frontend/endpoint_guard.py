"""An API server with settings does not start without the endpoint plugin that holds them.

vLLM logs a plugin that cannot be imported, or that VLLM_PLUGINS does not name, and goes on without.
A stand-in takes the missing plugin's place in the list of those that are attached, where vLLM hands
over its configuration, and refuses the start.
"""

import functools
from argparse import Namespace
from typing import Any, ClassVar

import vllm.plugins

from vtr_vllm.engine.common.front_end import no_front_end
from vtr_vllm.engine_settings import PLUGIN, EngineSettings
from vtr_vllm.errors import ConfigurationError

__all__ = ["install"]


class _Missing:
    """What stands where our endpoint plugin should; see vLLM's ``EndpointPlugin`` protocol."""

    name = "vtr-missing"
    required_tasks: ClassVar[None] = None

    def attach_router(self, app: Any) -> None:
        """Raise ConfigurationError where settings are configured."""
        config = getattr(app.state.args, "additional_config", None)
        if EngineSettings.of(config).settings is not None:
            raise ConfigurationError(no_front_end("the API server did not load the plugin"))

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Nothing: without settings vLLM's own server is what was asked for."""


def install() -> None:
    """Wrap vLLM's loader of endpoint plugins; safe to call again."""
    stock = vllm.plugins.load_endpoint_plugins
    if getattr(stock, "vtr_endpoint_guard", False):
        return

    @functools.wraps(stock)
    def load_endpoint_plugins(*arguments: Any, **named: Any) -> list[Any]:
        found: list[Any] = stock(*arguments, **named)
        return found if any(each.name == PLUGIN for each in found) else [*found, _Missing()]

    load_endpoint_plugins.vtr_endpoint_guard = True
    vllm.plugins.load_endpoint_plugins = load_endpoint_plugins
