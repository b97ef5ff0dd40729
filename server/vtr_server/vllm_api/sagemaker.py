"""SageMaker's route, which vLLM puts in place after every plugin.

vLLM hands its application to ``model_hosting_container_standards`` at last, which mounts the handler of its
own registry at ``/invocations``, in the place of any other. A handler of ours is registered there as one
that a user has written; only one that the environment names comes before it.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request

__all__ = ["ADAPTER", "own_invocations"]

ADAPTER = "X-Amzn-SageMaker-Adapter-Identifier"
"""The header that names the model. Its library's own transformation loses the body's where it is absent."""

Handle = Callable[[Request], Awaitable[Any]]


def own_invocations(handle: Handle, check: Handle) -> None:
    """Have ``handle`` answer at ``/invocations``, behind the sessions that vLLM has there.

    ``check`` comes before them: they read the body, and take it for an object.
    """
    import model_hosting_container_standards.sagemaker as sagemaker

    in_session = sagemaker.stateful_session_manager()(handle)

    async def invocations(raw_request: Request) -> Any:
        await check(raw_request)
        return await in_session(raw_request)

    invocations.__doc__ = handle.__doc__  # of the route
    sagemaker.custom_invocation_handler(invocations)
