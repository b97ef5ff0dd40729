"""Settings of vLLM's under which a name that one client gives reaches what is another's."""

from collections.abc import Mapping

from vtr_vllm.errors import ConfigurationError

__all__ = ["refuse_shared_names"]

_STORE = "VLLM_ENABLE_RESPONSES_API_STORE"
_PLAIN_IDS = "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"


def refuse_shared_names(environment: Mapping[str, str], has_keys: bool) -> None:
    """Refuse what cannot be kept apart; raises ConfigurationError."""
    if has_keys and _is_on(environment, _STORE):
        raise ConfigurationError(
            f"{_STORE} is set, and vLLM's store gives every response to whoever names it, whatever"
            " the key; unset it, or serve without [[keys]]"
        )
    if _is_on(environment, _PLAIN_IDS):
        raise ConfigurationError(
            f"{_PLAIN_IDS} is set, and then two clients that send the same X-Request-Id get each"
            " other's requests; unset it"
        )


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    """As vLLM reads it: a whole number."""
    return environment.get(name, "0").strip() not in ("", "0")
