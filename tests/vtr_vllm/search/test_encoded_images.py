"""What is held from list to list; that answers do not depend on it is in ``test_vllm_evaluator``."""

import pytest

from vtr_vllm.search.answers import Task
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.encoded_images import EncodedImages

VISION = 144
WHOLE, SMALL = Candidate((1.0,) * 4), Candidate((1.0,) * 4, image_scale=0.5)


class Engine:
    """Notes what it is to encode, and how often to forget."""

    def __init__(self):
        self.encoded, self.forgot = [], 0
        self.images = EncodedImages(10 * VISION, self.encode, self.forget)

    def encode(self, task, place):
        self.encoded.append((task.item.image_hashes[place], task.candidate.image_scale))
        return VISION

    def forget(self):
        self.forgot += 1


@pytest.fixture
def engine():
    return Engine()


def tasks(items, *candidates):
    return [Task(candidate, item) for item in items for candidate in candidates or [WHOLE]]


def test_each_image_of_each_size_is_encoded_once(engine, demo):
    engine.images.provide(tasks(demo.items[:4], WHOLE, WHOLE))
    engine.images.provide(tasks(demo.items[2:6]))
    hashes = [item.image_hash for item in demo.items]
    assert engine.encoded == [(each, 1.0) for each in hashes[:6]]
    engine.images.provide(tasks(demo.items[:1], WHOLE, SMALL))
    assert engine.encoded[6:] == [(hashes[0], 0.5)]
    assert not engine.forgot


def test_what_does_not_fit_beside_the_earlier_ones_takes_their_place(engine, demo):
    engine.images.provide(tasks(demo.items[:8]))
    engine.images.provide(tasks(demo.items[8:12]))
    assert engine.forgot == 1
    engine.images.provide(tasks(demo.items[8:14]))
    assert engine.forgot == 1
    assert len(engine.encoded) == 14


def test_more_than_can_be_held_leaves_nothing_behind(engine, demo):
    engine.images.provide(tasks(demo.items[:1]))
    engine.images.provide(tasks(demo.items[:20]))
    assert len(engine.encoded) == 1  # the engine encodes them as they come
    assert not engine.forgot
    engine.images.provide(tasks(demo.items[:2]))
    assert engine.forgot == 1  # before the next list
    assert len(engine.encoded) == 3


def test_the_first_list_may_be_too_long(engine, demo):
    engine.images.provide(tasks(demo.items[:20]))
    engine.images.provide(tasks(demo.items[:2]))
    assert engine.forgot == 1
