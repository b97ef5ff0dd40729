"""ATP's counts as a few schedules: what an engine that wants counts beforehand can serve.

Each instance gets counts of its own from the modules. Those of a data set are gathered into K groups of
like cost, and each group's mean is a schedule. Which of them a prompt gets, ``vtr search family`` learns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule
from vtr_vllm.schedules.keep_rates import cut_layers
from vtr_vllm.schedules.strict_json import JSON

__all__ = ["RULE", "distil"]

RULE = RankRule.parse("instruction")
"""The part of ATP's order that a rule has: attention from the text behind the image (eq. 4)."""


def distil(
    counts: Sequence[Sequence[int]],
    members: int,
    layers: Sequence[int],
    geometry: ModelGeometry,
    n_vision: int,
    provenance: Mapping[str, JSON],
) -> list[Schedule]:
    """At most ``members`` schedules, the dearest first.

    ``counts``: of each instance, the vision tokens of ``n_vision`` behind each cut, which lie before
    ``layers``. Raises ConfigurationError where there are fewer instances than schedules.
    """
    if len(counts) < members:
        raise ConfigurationError(
            f"{len(counts)} items are fewer than {members} schedules; name more data, or fewer --members"
        )
    governed = np.diff([*layers, geometry.layers])
    centres = set(map(tuple, _centres(np.asarray(counts, float), members, governed)))
    found = sorted(centres, key=lambda centre: (-int(np.dot(centre, governed)), centre))
    return [
        _schedule(number, centre, layers, geometry, n_vision, provenance)
        for number, centre in enumerate(found, 1)
    ]


def _centres(counts: np.ndarray, members: int, governed: np.ndarray) -> list[list[int]]:
    """Whole-numbered means of ``members`` groups, alike in what their cuts cost: tokens times layers."""
    from sklearn.cluster import KMeans

    distinct = min(members, len(np.unique(counts, axis=0)))
    groups = KMeans(distinct, n_init=10, random_state=0).fit_predict(counts * governed)
    return [
        counts[groups == group].mean(0).round().astype(int).tolist() for group in range(distinct)
    ]


def _schedule(
    number: int,
    counts: Sequence[int],
    layers: Sequence[int],
    geometry: ModelGeometry,
    n_vision: int,
    provenance: Mapping[str, JSON],
) -> Schedule:
    ends = [*layers[1:], geometry.layers]
    keep = [1.0] * layers[0]
    for count, first, end in zip(counts, layers, ends, strict=True):
        keep += [count / n_vision] * (end - first)
    return Schedule(
        name=f"atp-{number}",
        geometry=geometry,
        keep=tuple(keep),
        rules=(RULE,) * len(cut_layers(keep, 1.0)),
        method="atp",
        provenance=provenance,
    )
