"""How found counts travel, by messages of vLLM's that have no field for them."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from vtr_vllm.engine.common.adaptive_counts import (
    take_told,
    tell_front_end,
    tell_scheduler,
    told_by_worker,
)

COUNTS = {"a": (9, 9, 3), "b": (4, 4, 0)}


def output() -> ModelRunnerOutput:
    return ModelRunnerOutput(["a", "b"], {"a": 0, "b": 1})


def test_a_workers_output_carries_them_between_processes() -> None:
    sent: Any = tell_scheduler(output(), COUNTS)
    assert told_by_worker(pickle.loads(pickle.dumps(sent))) == COUNTS
    assert told_by_worker(output()) == {}


def test_so_does_one_that_is_not_ready_yet() -> None:
    class Later(AsyncModelRunnerOutput):
        def get_output(self) -> ModelRunnerOutput:
            return output()

    first, other = Later(), Later()
    sent: Any = tell_scheduler(first, COUNTS)
    assert told_by_worker(sent.get_output()) == COUNTS
    assert told_by_worker(other.get_output()) == {}


def test_a_requests_output_carries_its_own_and_shows_it_to_nobody_else() -> None:
    sent = EngineCoreOutput("a", [7])
    tell_front_end(sent, COUNTS["a"])
    wire = msgspec.msgpack.encode(sent)
    there = msgspec.msgpack.decode(wire, type=EngineCoreOutput)
    assert take_told(there) == COUNTS["a"]
    assert there.kv_transfer_params is None
    assert take_told(there) is None


def test_what_a_connector_says_stays() -> None:
    sent = EngineCoreOutput("a", [7], kv_transfer_params={"x": 1})
    assert take_told(sent) is None
    tell_front_end(sent, COUNTS["a"])
    assert take_told(sent) == COUNTS["a"]
    assert sent.kv_transfer_params == {"x": 1}
