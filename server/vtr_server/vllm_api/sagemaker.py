"""SageMaker's route, which vLLM puts in place after every plugin.

vLLM hands its application to ``model_hosting_container_standards`` at last, which mounts the handler of its
own registry at ``/invocations``, in the place of any other. A handler of ours is registered there as one
that a user has written; only one that the environment names comes before it.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request

__all__ = ["own_invocations"]


def own_invocations(handle: Callable[[Request], Awaitable[Any]]) -> None:
    """Have ``handle`` answer at ``/invocations``, behind the transformations that vLLM has there."""
    import model_hosting_container_standards.sagemaker as sagemaker

    description = handle.__doc__
    handle = sagemaker.inject_adapter_id(adapter_path="model")(handle)
    handle = sagemaker.stateful_session_manager()(handle)
    handle.__doc__ = description  # of the route, which would tell of the wrapper
    sagemaker.custom_invocation_handler(handle)
