"""A queue of which a step sees the more urgent requests alone."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.core.sched.request_queue import PriorityRequestQueue

from vtr_vllm.engine.scheduler.more_urgent import MoreUrgent


@dataclass(order=True)
class Waiting:
    priority: int
    arrival_time: int


@given(st.lists(st.integers(0, 4)), st.integers(0, 4))
def test_more_urgent_requests_come_in_order_and_no_other(priorities: list[int], bound: int) -> None:
    queue = PriorityRequestQueue()
    for arrival, priority in enumerate(priorities):
        queue.add_request(Waiting(priority, arrival))
    seen = MoreUrgent(queue, bound)
    assert len(seen) == len(priorities)
    assert list(seen) == list(queue)
    taken = []
    while seen:
        assert seen.peek_request() is queue.peek_request()
        taken.append(seen.pop_request())
    every = sorted(Waiting(priority, i) for i, priority in enumerate(priorities))
    assert taken == [request for request in every if request.priority < bound]
    seen.prepend_requests(taken)
    assert len(queue) == len(priorities), "what is put back is in the queue itself"
