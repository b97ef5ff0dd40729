"""Room for more encoded images than one batch needs."""

from vllm.v1.engine.llm_engine import LLMEngine


def keep_encoded(engine: LLMEngine, tokens: int) -> int:
    """Let an engine in this process keep what its tower made of ``tokens`` vision tokens, or more.

    Returns how many it keeps. vLLM has no setting for it: as many as fit into a batch.
    """
    manager = engine.engine_core.engine_core.scheduler.encoder_cache_manager
    more = max(0, tokens - manager.cache_size)
    manager.cache_size += more
    manager.num_free_slots += more
    manager.num_freeable_slots += more
    size: int = manager.cache_size
    return size
