"""The waiting queue as it looks to a step that may admit the most urgent requests alone."""

from collections.abc import Iterable, Iterator

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

__all__ = ["MoreUrgent"]


class MoreUrgent(RequestQueue):
    """A queue by priority that looks empty where its head is not more urgent than ``priority``.

    A look costs nothing that grows with the queue, and whatever is put in is in the queue itself.
    """

    def __init__(self, queue: RequestQueue, priority: int) -> None:
        self._queue, self._priority = queue, priority

    def __bool__(self) -> bool:
        return bool(self._queue) and self._queue.peek_request().priority < self._priority

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    def add_request(self, request: Request) -> None:
        self._queue.add_request(request)

    def pop_request(self) -> Request:
        return self._queue.pop_request()

    def peek_request(self) -> Request:
        return self._queue.peek_request()

    def prepend_request(self, request: Request) -> None:
        self._queue.prepend_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        self._queue.prepend_requests(requests)

    def remove_request(self, request: Request) -> None:
        self._queue.remove_request(request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        self._queue.remove_requests(requests)
