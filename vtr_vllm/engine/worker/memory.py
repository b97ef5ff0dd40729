"""Memory for steps with cuts, reserved where vLLM measures what a step takes.

vLLM runs the model once on as many rows as a step may have, without any cut, and gives the KV cache what
that run left at its peak. A step with cuts takes more: layer by layer, its loop holds what a layer gets
while it runs, and rankings need keys and queries.
"""

import logging
from dataclasses import dataclass

import torch
from vllm.model_executor.layers.attention import Attention

from vtr_vllm.engine.worker.merging import TILE_BYTES as MERGED_BYTES
from vtr_vllm.engine.worker.rank_groups import most_keys
from vtr_vllm.ranking.pairs import MOST_TOKENS, PAIRS_BYTES
from vtr_vllm.ranking.probabilities import BATCH_TILE_BYTES, CHUNK, TILE_BYTES

logger = logging.getLogger("vllm.vtr")


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a step takes; widths in elements, of one tensor-parallel rank."""

    hidden: int
    query: int
    key: int
    heads: int
    element: int
    """Bytes of an activation's element."""
    longest: int
    """Most tokens of a request."""
    layers: int
    looks: int = 1
    """How many rules by attention may look at one cut of a request."""

    @classmethod
    def of(
        cls,
        attention: Attention,
        hidden: int,
        dtype: torch.dtype,
        longest: int,
        layers: int,
        looks: int = 1,
    ) -> "StepMemory":
        """That of a model with such layers."""
        return cls(
            hidden=hidden,
            query=attention.num_heads * attention.head_size,
            key=attention.num_kv_heads * attention.head_size,
            heads=attention.num_heads,
            element=dtype.itemsize,
            longest=longest,
            layers=layers,
            looks=looks,
        )

    def peak(self, rows: int, layer: int) -> int:
        """At most, with cuts, in a step of ``rows`` of which a layer takes ``layer`` bytes while it runs."""
        hidden = 2 * rows * self.hidden * self.element  # and the residual
        # Of queries those that ask; keys of several requests are padded by as much as they are.
        seen = rows * (self.query + 2 * self.looks * self.key) * self.element
        plan = rows * 8 * (self.layers + 8)  # slots of each segment, numbers of the rows
        # A cut has them before and behind it; a restored step has as many rows as at its beginning.
        work = max(layer, hidden, self._ranking(rows), self._merging(rows))
        return hidden + seen + plan + work

    def _merging(self, rows: int) -> int:
        """Of kept tokens in float32: directions while they are normed, then the sums of hidden state and
        residual, and both once more as they go on; of dropped ones a few tiles."""
        token = 4 * max(rows, self.hidden)
        tile = max(token, min(MERGED_BYTES, rows * token))
        return rows * self.hidden * (4 * 4 + 2 * self.element) + 4 * tile

    def _ranking(self, rows: int) -> int:
        """Of one request, or of several together: the others' are over, or to come."""
        own, keys = min(rows, self.longest), max(self.longest, most_keys(rows))
        # Read from the cache block by block, values too; put in order; joined.
        joined = 4 * keys * self.key * self.element
        alone, together = (4 * self.heads * own * seen for seen in (self.longest, keys))
        logits = min(TILE_BYTES, max(min(BATCH_TILE_BYTES, together), alone))
        asking = max(1, min(own, logits // (4 * self.heads * self.longest)))
        # In float32, turned back: halves, products, and both joined.
        turned = max(min(CHUNK, self.longest), most_keys(rows, rope=False))
        floats = 4 * max(4 * turned, most_keys(rows)) * self.key + 4 * 4 * asking * self.query
        # Embeddings or states of all images of a step, in float32, and what becomes of them.
        blind = rows * self.hidden * (self.element + 3 * 4)
        # Distances of their pairs, and twice while those of like ones become none.
        blind += 9 * min(PAIRS_BYTES, 4 * rows * min(rows, MOST_TOKENS)) // 4
        return max(joined + floats + 2 * max(logits, 4 * self.heads * keys), blind)


def reserve(memory: StepMemory, rows: int, device: torch.device) -> None:
    """Take and give back what a step of ``rows`` takes with cuts, for vLLM to see; on a GPU alone.

    Call behind the run that vLLM measures, in its measurement.
    """
    if device.type != "cuda":
        return
    layer = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    most = memory.peak(rows, layer)
    torch.empty(most, dtype=torch.uint8, device=device)
    logger.info(
        "VTR: a step of %d rows takes %.2f GiB without cuts, and is given %.2f GiB",
        rows,
        layer / 2**30,
        most / 2**30,
    )
