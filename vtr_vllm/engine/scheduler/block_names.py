"""Names of the KV blocks of a local request, by which the prefix cache finds them again.

What a band stores of a local request is a function of the prompt so far and of its schedule. vLLM names
a block by a hash of all tokens up to its end, images included. So do we, with the schedule, the form of
the images so far (a video is cut by frames where these are known) and the block's number added, where a band's blocks end elsewhere in the prompt than vLLM's:

- a block is full once the band stores so many tokens; the prompt up to there names it. Where that is
  inside of an image, all of the image does: which of its tokens stay depends on all of them;
- a band's last block, which is not full, is named at the positions where requests part or go on: behind
  each image, and where a block of the prompt ends (``marks``). Who hits it gets a copy from vLLM;
- blocks before the first vision token have the names that they have without a schedule: all share them.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from vllm.multimodal.utils import get_mm_features_in_window
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    generate_block_hash_extra_keys,
    hash_block_tokens,
)
from vllm.v1.request import Request

from vtr_vllm.reduction.request import ReducedRequest
from vtr_vllm.schedules import KEEP_KEY, RULES_KEY

HashFunction = Callable[[Any], bytes]


class BlockNames(list[BlockHash]):
    """vLLM's block hashes of a request, which it appends to, and the names of its bands' blocks."""

    def __init__(
        self,
        request: Request,
        reduced: ReducedRequest,
        signature: Hashable,
        hash_block_size: int,
        hash_function: HashFunction,
    ) -> None:
        super().__init__(request.block_hashes)
        self._request = request
        self.reduced = reduced
        self._hash_block_size = hash_block_size
        self._hash_function = hash_function
        self._forms = [hash_function(signature)]
        """By images done: the schedule, and which positions it takes for an image or a frame."""
        for part in reduced.parts:
            form = (self._forms[-1], part.start, part.end, part.units[0].grid)
            self._forms.append(hash_function(form))
        self._names: dict[tuple[int, int], BlockHash] = {}
        """(position, number of the block) -> its name."""
        self.marked = 0
        """Up to which position the last blocks are named."""

    def name(self, number: int, layer: int, block_size: int) -> BlockHash | None:
        """The name of a full block of the band that begins with ``layer``; None: its tokens are not there
        yet."""
        end = self.reduced.filled_at((number + 1) * block_size, layer)
        return self.name_at(end, number) if end <= self._request.num_tokens else None

    def name_at(self, end: int, number: int) -> BlockHash:
        """The name of block ``number`` with all that a band stores of it of the first ``end`` positions."""
        whole, rest = divmod(end, self._hash_block_size)
        if end <= self.reduced.first_vision and not rest:
            return self[whole - 1]
        if (end, number) not in self._names:
            self._names[end, number] = self._signed(end, number, whole, rest)
        return self._names[end, number]

    def _signed(self, end: int, number: int, whole: int, rest: int) -> BlockHash:
        item, _ = get_mm_features_in_window(self._request.mm_features, end - rest, end)
        extra, _ = generate_block_hash_extra_keys(self._request, end - rest, end, item)
        return hash_block_tokens(
            self._hash_function,
            self[whole - 1] if whole else None,
            self._request.all_token_ids[end - rest : end],
            (*(extra or ()), "vtr", self._forms[self.reduced.parts_done(end)], number),
        )

    @property
    def before_vision(self) -> int:
        """The positions of whole blocks before the first vision token."""
        return self.reduced.first_vision // self._hash_block_size * self._hash_block_size

    def marks(self, first: int, last: int) -> list[int]:
        """The positions behind ``first`` up to ``last`` at which last blocks are named, descending."""
        size = self._hash_block_size
        parts = self.reduced.parts[self.reduced.parts_done(first) : self.reduced.parts_done(last)]
        found = {part.end for part in parts}
        ends = range(last // size * size, max(first, self.reduced.first_vision), -size)
        found |= {end for end in ends if not self.reduced.splits(end)}
        return sorted(found, reverse=True)

    def next_mark(self, position: int) -> int:
        """The first position behind ``position`` at which a last block may be named."""
        size, done = self._hash_block_size, self.reduced.parts_done(position)
        block_end = (position // size + 1) * size
        parts = self.reduced.parts
        return min(block_end, parts[done].end) if done < len(parts) else block_end


def signature(extra_args: Mapping[str, Any]) -> Hashable:
    """What names a schedule: two that keep other tokens of any prompt never have the same."""
    return tuple(tuple(extra_args[key]) for key in (KEEP_KEY, RULES_KEY))
