"""Samples: the same bytes everywhere, splits apart."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import pytest

from vtr_vllm.demo import CONVERSATIONS, SPLITS, conversation, sample
from vtr_vllm.demo.splits import TABLE, Split, check_disjoint, seed_of
from vtr_vllm.demo.world import KINDS

DIGESTS = {
    "train": "94ddff13e5deac11",
    "calibration": "d2549ca52e6fab6f",
    "test": "deab8ff732455e4a",
    "test-hard": "dbdbdab6ef1cbadb",
}

CONVERSATION_DIGESTS = {"calibration-talk": "d1ad3377fd5204be", "test-talk": "01ad6662a2c38e06"}


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
    table = TABLE | CONVERSATIONS
    check_disjoint(table)
    for name, other in combinations(table, 2):
        a, b = table[name].seeds, table[other].seeds
        assert max(a.start, b.start) >= min(a.stop, b.stop)


@pytest.mark.parametrize(("split", "digest"), CONVERSATION_DIGESTS.items())
def test_conversations_are_the_same_bytes_everywhere(split: str, digest: str) -> None:
    found = hashlib.sha256()
    for index in (0, 1, 777):
        drawn = conversation(split, index)
        for scene in drawn.scenes:
            found.update(scene.pixels.tobytes())
        found.update(str([(t.question.text, t.question.answer) for t in drawn.turns]).encode())
    assert found.hexdigest()[:16] == digest


def test_conversations_are_of_all_forms() -> None:
    drawn = [conversation("test-talk", index) for index in range(60)]
    assert {len(talk.turns) for talk in drawn} == {2, 3, 4}
    assert {len(talk.scenes) for talk in drawn} == {1, 2}
    for talk in drawn:
        brings = [turn.brings for turn in talk.turns]
        assert brings[0]
        assert sum(brings) == len(talk.scenes)
        texts = [turn.question.text for turn in talk.turns]
        assert len(talk.scenes) == 2 or len(set(texts)) == len(texts)
    assert {turn.question.kind for talk in drawn for turn in talk.turns} == set(KINDS)


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
