"""vLLM's renderer without an engine: what makes the engine's input, and the keys of its caches."""

from __future__ import annotations

from typing import Any

from tests.tiny import tiny_llava


def tiny_renderer() -> Any:
    """That of a tiny model. To be shut down."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers import renderer_from_config

    config = EngineArgs(model=str(tiny_llava()), enforce_eager=True).create_engine_config()
    return renderer_from_config(config)


async def image_keys(renderer: Any, *parts: dict[str, Any]) -> list[str]:
    """Under which keys the images of one chat request go to vLLM's caches."""
    from vllm.renderers.params import ChatParams

    messages: Any = [{"role": "user", "content": [*parts, {"type": "text", "text": "what?"}]}]
    _, [engine_input] = await renderer.render_chat_async([messages], ChatParams())
    found: list[str] = engine_input["mm_hashes"]["image"]
    return found
