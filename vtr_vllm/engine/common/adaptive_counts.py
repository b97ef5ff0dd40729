"""How counts that the model found travel: from a worker to the scheduler, and on to the front end.

vLLM's messages have no field for them. Its worker's output is an object, which takes one more attribute; its
outputs of a request have a dictionary for KV connectors, which VTR refuses.
"""

from collections.abc import Mapping
from typing import Any

from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

Counts = Mapping[str, tuple[int, ...]]
"""Request -> vision tokens that each layer sees."""

_NAME = "vtr_counts"


def tell_scheduler(
    output: ModelRunnerOutput | AsyncModelRunnerOutput, counts: Counts
) -> ModelRunnerOutput | AsyncModelRunnerOutput:
    """Give ``output``, of a step that found ``counts``, these to carry."""
    if isinstance(output, AsyncModelRunnerOutput):
        return _Carrying(output, counts)
    setattr(output, _NAME, counts)
    return output


class _Carrying(AsyncModelRunnerOutput):
    """An output that is not ready yet, and what goes along."""

    def __init__(self, stock: AsyncModelRunnerOutput, counts: Counts) -> None:
        self._stock, self._counts = stock, counts

    def get_output(self) -> ModelRunnerOutput:
        found = self._stock.get_output()
        setattr(found, _NAME, self._counts)
        return found


def told_by_worker(output: ModelRunnerOutput) -> Counts:
    """What the worker's step found."""
    counts: Counts = getattr(output, _NAME, {})
    return counts


def tell_front_end(output: EngineCoreOutput, counts: tuple[int, ...]) -> None:
    """Give the first output of a request what each layer sees of it."""
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), _NAME: counts}


def take_told(output: EngineCoreOutput) -> tuple[int, ...] | None:
    """What an output says of its request's counts, once: nobody else is to see it."""
    params: dict[str, Any] | None = output.kv_transfer_params
    if not params or _NAME not in params:
        return None
    counts = tuple(params.pop(_NAME))
    output.kv_transfer_params = params or None
    return counts
