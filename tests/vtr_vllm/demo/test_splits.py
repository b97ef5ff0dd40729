"""Samples: the same bytes everywhere, splits apart."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import pytest

from vtr_vllm.demo import SPLITS, sample
from vtr_vllm.demo.splits import TABLE, Split, check_disjoint, seed_of
from vtr_vllm.demo.world import KINDS

DIGESTS = {
    "train": "94ddff13e5deac11",
    "calibration": "d2549ca52e6fab6f",
    "test": "deab8ff732455e4a",
    "test-hard": "dbdbdab6ef1cbadb",
}


@pytest.mark.parametrize("split", SPLITS)
def test_samples_are_the_same_bytes_everywhere(split: str) -> None:
    digest = hashlib.sha256()
    for index in (0, 1, 777):
        item = sample(split, index)
        digest.update(item.image.tobytes() + f"{item.question}{item.answer}{item.targets}".encode())
    assert digest.hexdigest()[:16] == DIGESTS[split]


def test_kinds_take_turns() -> None:
    assert [sample("test", i).kind for i in range(5)] == list(KINDS)


def test_images_are_rgb_of_the_promised_size() -> None:
    image = sample("test-hard", 3).image
    assert (image.mode, image.size) == ("RGB", (168, 168))


def test_splits_share_no_seed() -> None:
    check_disjoint(TABLE)
    for name, other in combinations(SPLITS, 2):
        a, b = TABLE[name].seeds, TABLE[other].seeds
        assert max(a.start, b.start) >= min(a.stop, b.stop)


def test_overlapping_splits_are_refused() -> None:
    first = TABLE["test"]
    late = replace(first, seeds=range(first.seeds.stop - 1, first.seeds.stop + 5))
    with pytest.raises(ValueError, match="share scene seeds"):
        check_disjoint({"a": first, "b": Split(late.seeds, late.density)})


@pytest.mark.parametrize("index", [-1, 100_000])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="outside split 'test': 0 to 99999"):
        seed_of("test", index)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        sample("tset", 0)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, vtr_vllm.demo; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
