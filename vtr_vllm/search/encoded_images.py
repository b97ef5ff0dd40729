"""Which images an engine holds encoded: a search asks about the same ones thousands of times.

What is kept must not depend on when it was made, or a search that is resumed would see other answers
than the uninterrupted one. So each image is encoded in a step of its own.
"""

from collections.abc import Callable, Iterator, Sequence

from vtr_vllm.search.answers import Task

_Key = tuple[str, float]
"""Hash of an image, and its scale."""


class EncodedImages:
    """The images that one engine holds, up to ``room`` vision tokens of them.

    ``encode`` (task, place among its images) has the engine encode one, and returns its vision tokens;
    ``forget`` has it drop them all.
    """

    def __init__(
        self, room: int, encode: Callable[[Task, int], int], forget: Callable[[], None]
    ) -> None:
        self._room, self._encode, self._forget = room, encode, forget
        self._tokens: dict[_Key, int] = {}
        """Vision tokens of each image that was encoded by itself."""
        self._others = False
        """Whether the engine may hold more, encoded as their neighbours had it."""

    def provide(self, tasks: Sequence[Task]) -> None:
        """Have the images of ``tasks`` encoded before they are asked about.

        Where they are too many to be held, each is encoded when it comes, and nothing stays for later
        lists. Raises what ``encode`` raises.
        """
        if self._others:
            self.forget()
        wanted = dict.fromkeys(key for task in tasks for key in _keys(task))
        largest = max(self._tokens.values(), default=0)
        if len(wanted) * largest > self._room:
            self._others = True
            return
        missing = sum(key not in self._tokens for key in wanted)
        if sum(self._tokens.values()) + missing * largest > self._room:
            self.forget()
        for task in tasks:
            for place, key in enumerate(_keys(task)):
                if key not in self._tokens:
                    self._tokens[key] = self._encode(task, place)
        if sum(self._tokens.values()) > self._room:
            self._others = True  # the first list says how large they are

    def forget(self) -> None:
        """Hold none: after a failure nobody knows what is there."""
        self._forget()
        self._tokens.clear()
        self._others = False


def _keys(task: Task) -> Iterator[_Key]:
    """Of every image of a task, in its order."""
    for image in task.item.image_hashes:
        yield image, task.candidate.image_scale
