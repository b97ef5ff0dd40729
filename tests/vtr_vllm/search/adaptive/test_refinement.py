import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.search.adaptive.pool import pool
from vtr_vllm.search.adaptive.refinement import FamilySearch, Refinement

LAYERS = 8
SETTINGS = Refinement(budgets=(0.4, 0.2), members=4, rounds=1, items=200, sweeps=2, moves=12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return items(tmp_path_factory.mktemp("refinement"), 200)


def search(data, settings=SETTINGS):
    done = study(SimulatedEvaluator(LAYERS, (64,)), data)
    done.unreduced()
    found = FamilySearch(done, done.prompts, settings)
    found.add(pool(done, (), settings.budgets))
    return found, found.run()


@pytest.fixture(scope="module")
def searched(data):
    return search(data)


def test_members_differ_and_cost_what_budgets_need(searched):
    _, members = searched
    costs = [sum(each.keep) / LAYERS for each in members]
    assert len(set(members)) == SETTINGS.members
    assert costs == sorted(costs)
    assert costs[0] <= min(SETTINGS.budgets)


def test_searching_on_the_prompts_of_a_schedule_finds_more(data, searched):
    """What a round adds to the pool is worth more to the prompts that chose the schedule before."""
    start, _ = search(data, Refinement(**{**vars(SETTINGS), "rounds": 0}))
    found, members = searched
    assert set(found.found) > set(start.found)
    assert set(members) - set(start.found)


def test_the_same_every_time(data, searched):
    assert search(data)[1] == searched[1]
