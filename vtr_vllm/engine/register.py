"""The ``vllm.general_plugins`` entry point: vLLM calls it in each of its processes."""

from vtr_vllm.engine.compat import check_vllm_version


def register() -> None:
    """Install VTR into this vLLM process; safe to call again, as vLLM may."""
    check_vllm_version()

    from vllm import ModelRegistry

    from vtr_vllm.engine import admission, sender_cache
    from vtr_vllm.engine.kv_bands import register_band_spec
    from vtr_vllm.engine.models import SUPPORTED_ARCHITECTURES

    for architecture in SUPPORTED_ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"vtr_vllm.engine.families:{architecture}")
    # The scheduler's process never loads the model, and it must know the spec too.
    register_band_spec()
    admission.install()
    sender_cache.install()
