"""What a reduced step gives a device to do: no more for many requests than for one.

A host takes some 10 us for each operation, and at budget 0.25 a GPU needs less than that: what a cut
costs is how many there are. So they are counted.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from vllm.forward_context import ForwardContext, override_forward_context
from vllm.v1.worker.utils import AttentionGroup

from tests.contract.device import DEVICE
from tests.contract.test_device import HIDDEN, decoder, groups, step_of  # noqa: F401  (fixtures)
from tests.vtr_vllm.engine.operations import Operations
from tests.vtr_vllm.reduction.strategies import LAYERS, request_of
from vtr_vllm.engine.worker.decoder import ReducibleDecoder
from vtr_vllm.reduction.batch import StepRequest

OF_A_STEP = 12
"""Copies, slots, the first rows, the way back to all rows."""
OF_A_CUT = 17
"""Ranking by one query, ordering with padding behind, taking rows along."""
OF_A_PREFIX = 6
"""More, a cut: its keys read back from the cache and put in front."""
OF_A_LAYER = 1
"""Of these layers themselves: an addition."""
CURVES = {
    0: (1.0,) * 6 + (0.99,),
    1: (1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5),
    2: (1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25),
    4: (1.0, 1.0, 0.8, 0.6, 0.6, 0.4, 0.2),
}


def counted(
    decoder: ReducibleDecoder,  # noqa: F811
    groups: list[list[AttentionGroup]],  # noqa: F811
    requests: list[StepRequest],
) -> Counter[str]:
    rows = sum(request.scheduled for request in requests)
    context = ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})
    positions = torch.empty(rows, dtype=torch.int64, device=DEVICE)
    embeddings = torch.empty(rows, HIDDEN, device=DEVICE)
    with Operations(DEVICE) as operations, override_forward_context(context):
        decoder.forward(step_of(requests, groups), positions, embeddings, None)
    return operations.counts


def prompts(count: int, curve: tuple[float, ...], rule: str = "last", computed: int = 0, first=""):
    """Pictures of one size, with questions of several lengths; ``first``: the rule of the first cut."""
    cuts = sum(later < earlier for earlier, later in pairwise((1.0, *curve)))
    rules = ((first or rule), *(rule,) * (cuts - 1)) if cuts else ()
    return [
        StepRequest(
            computed,
            70 + 3 * (i % 5) - computed,
            request_of([range(6, 60)], 70 + 3 * (i % 5), curve, rules),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("computed", [0, 5])
@pytest.mark.parametrize("rule", ["last", "last-max", "last-norope", "instruction"])
def test_many_requests_take_what_a_few_do(
    decoder: ReducibleDecoder,  # noqa: F811
    groups: list[list[AttentionGroup]],  # noqa: F811
    rule: str,
    computed: int,
) -> None:
    few, many = (
        counted(decoder, groups, prompts(count, CURVES[2], rule, computed)) for count in (5, 20)
    )
    assert few == many


LOCAL = ["saliency", "random", "grid", "prefix", "orthogonal", "diverse"]


@pytest.mark.parametrize("first", ["diverse", "grid", "last+nearest"])
def test_so_do_those_whose_first_cut_looks_at_the_image_or_merges(
    decoder: ReducibleDecoder,  # noqa: F811
    groups: list[list[AttentionGroup]],  # noqa: F811
    first: str,
) -> None:
    few, many = (
        counted(decoder, groups, prompts(count, CURVES[2], first=first)) for count in (2, 20)
    )
    assert few == many


@pytest.mark.parametrize("rule", LOCAL)
def test_many_images_take_what_a_few_do(
    decoder: ReducibleDecoder,  # noqa: F811
    groups: list[list[AttentionGroup]],  # noqa: F811
    rule: str,
) -> None:
    """Of local requests, whose images each keep their own share: of several prompts, and of one."""
    few, many, alone = (
        counted(
            decoder,
            groups,
            [
                StepRequest(0, 70 + 3 * i, album(images, 70 + 3 * i, rule))
                for i, images in enumerate(albums)
            ],
        )
        for albums in ([2, 1], [2, 3, 1, 3, 2, 3], [3])
    )
    assert few == many == alone


@pytest.mark.parametrize("rule", ["self", "self-max"])
def test_images_that_look_at_what_is_before_take_a_little_more(
    decoder: ReducibleDecoder,  # noqa: F811
    groups: list[list[AttentionGroup]],  # noqa: F811
    rule: str,
) -> None:
    """Those behind a prefix of like length are ranked together, and nothing is paid per image."""
    few, many = (
        counted(decoder, groups, [StepRequest(0, 70, album(2, 70, rule)) for _ in range(count)])
        for count in (2, 12)
    )
    assert many.total() <= few.total() + 12


def album(images: int, length: int, rule: str):
    spans = [range(20 * i + 2, 20 * i + 18) for i in range(images)]
    return request_of(spans, length, CURVES[2], (rule, rule), local=True)


@pytest.mark.parametrize("cuts", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("computed", [0, 5])
def test_a_cut_takes_few_operations(
    decoder: ReducibleDecoder,  # noqa: F811
    groups: list[list[AttentionGroup]],  # noqa: F811
    cuts: int,
    count: int,
    computed: int,
) -> None:
    requests = prompts(count, CURVES[cuts], computed=computed)
    requests += [StepRequest(90, 1, None), StepRequest(3, 20, None)]
    operations = counted(decoder, groups, requests)
    each = OF_A_CUT + (OF_A_PREFIX if computed else 0)
    assert operations.total() <= OF_A_STEP + OF_A_LAYER * LAYERS + each * cuts
