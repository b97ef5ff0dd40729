"""The ``vllm.general_plugins`` entry point: vLLM calls it in each of its processes."""

from vtr_vllm.engine.common.compat import check_vllm_version


def register() -> None:
    """Install VTR into this vLLM process; safe to call again, as vLLM may."""
    check_vllm_version()

    from vllm import ModelRegistry

    from vtr_vllm.engine.common import front_end
    from vtr_vllm.engine.common.supported_models import SUPPORTED_ARCHITECTURES
    from vtr_vllm.engine.frontend import admission, endpoint_guard, first_tokens, sender_cache
    from vtr_vllm.engine.scheduler.kv_bands import register_band_spec

    for architecture in SUPPORTED_ARCHITECTURES:
        ModelRegistry.register_model(
            architecture, f"vtr_vllm.engine.worker.families:{architecture}"
        )
    # The scheduler's process never loads the model, and it must know the spec too.
    register_band_spec()
    admission.install()
    first_tokens.install()
    sender_cache.install()
    endpoint_guard.install()
    front_end.note_plugin()
