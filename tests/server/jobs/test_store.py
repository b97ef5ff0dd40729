"""Job folders: what is on disk is what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from tests.server.jobs.conftest import Place
from vtr_server.jobs.protocol import Job, JobSpec
from vtr_server.jobs.store import JobStore, try_lock
from vtr_vllm.errors import ConfigurationError, UnknownJob
from vtr_vllm.search_options import KINDS


@pytest.fixture
def store(place: Place) -> JobStore:
    return JobStore(place.jobs)


def test_a_store_that_is_opened_again_holds_the_same(place: Place, store: JobStore) -> None:
    jobs = [store.create(place.spec(seed=seed)) for seed in range(3)]
    changed = store.update(jobs[1].id, state="failed", exit=3, reason="no engine", attempts=2)
    store.close()
    again = JobStore(place.jobs)
    assert again.newest() == [jobs[2], changed, jobs[0]]
    assert again.folder(jobs[0].id) == place.jobs / jobs[0].id


def test_jobs_are_counted_as_they_come_and_end(place: Place, store: JobStore) -> None:
    def counted() -> list[float]:
        found = [REGISTRY.get_sample_value("vtr_jobs", {"state": s}) for s in ("queued", "running")]
        ends = ("done", "failed", "cancelled")
        name = "vtr_jobs_finished_total"
        found += [REGISTRY.get_sample_value(name, {"state": end}) for end in ends]
        return [value or 0.0 for value in found]

    ended = counted()[2:]
    jobs = [store.create(place.spec(seed=seed)) for seed in range(4)]
    store.update(jobs[0].id, state="running", attempts=1)
    store.update(jobs[0].id, cancel_requested=True)
    assert counted() == [3, 1, *ended]
    for job, state in zip(jobs, ("cancelled", "failed", "done"), strict=False):
        store.update(job.id, state=state)
        store.update(job.id, exit=1)
    assert counted() == [1, 0, *(before + 1 for before in ended)]
    store.update(jobs[1].id, state="queued")
    store.close()
    JobStore(place.jobs)
    assert counted()[:2] == [2, 0], "what a start finds counts"


def test_ids_sort_by_creation_whatever_the_clock_says(
    place: Place, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([500, 500, 3, 501, 10**18])
    monkeypatch.setattr("vtr_server.jobs.store.time.time_ns", lambda: next(ticks))
    ids = [store.create(place.spec()).id for _ in range(5)]
    assert ids == sorted(set(ids))


def test_a_page_holds_older_jobs_of_one_state(place: Place, store: JobStore) -> None:
    jobs = [store.create(place.spec()) for _ in range(4)]
    store.update(jobs[2].id, state="done")
    ids = [job.id for job in jobs]
    assert [job.id for job in store.newest(after=ids[3])] == ids[2::-1]
    assert [job.id for job in store.newest("queued", ids[3])] == ids[1::-1]
    assert store.newest("failed") == []


@pytest.mark.parametrize("job_id", ["", "..", "lock", "0" * 16])
def test_an_unknown_id_reaches_no_path(store: JobStore, job_id: str) -> None:
    with pytest.raises(UnknownJob, match="GET /v1/jobs"):
        store.folder(job_id)


def test_a_second_service_is_refused_until_the_first_is_gone(place: Place, store: JobStore) -> None:
    with pytest.raises(ConfigurationError, match="in use by another"):
        JobStore(place.jobs)
    store.close()
    JobStore(place.jobs).close()


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "\\xff", None])
def test_a_job_file_that_is_none_is_named_and_the_others_go_on(
    place: Place, store: JobStore, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    job, other = store.create(place.spec()), store.create(place.spec())
    store.close()
    path = place.jobs / job.id / "job.json"
    if text is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_text(text)
    again = JobStore(place.jobs)
    assert again.newest() == [other]
    (broken,) = again.broken
    assert broken.id == job.id
    assert "repair it and start the service again" in broken.reason
    assert f"job {job.id} is broken: job.json" in caplog.text
    assert again.create(place.spec()).id > job.id
    again.close()
    (place.jobs / job.id).rename(place.folder / "away")
    assert JobStore(place.jobs).broken == []


def test_a_job_in_a_folder_of_another_name_is_broken(place: Place, store: JobStore) -> None:
    job = store.create(place.spec())
    store.close()
    (place.jobs / job.id).rename(place.jobs / "abc")
    again = JobStore(place.jobs)
    assert again.newest() == []
    assert [(broken.id, job.id in broken.reason) for broken in again.broken] == [("abc", True)]
    again.create(place.spec())


def test_a_crash_while_creating_leaves_no_job(place: Place, store: JobStore) -> None:
    store.close()
    (place.jobs / ".0123456789abcdef.tmp").mkdir()
    assert JobStore(place.jobs).newest() == []


def test_a_lock_is_held_by_whoever_it_was_passed_to(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,)
    )
    os.close(lock)
    assert try_lock(tmp_path / "lock") is None
    child.communicate(b"\n")
    free = try_lock(tmp_path / "lock")
    assert free is not None
    os.close(free)


@given(
    st.builds(
        Job,
        id=st.integers(0, 2**64 - 1).map("{:016x}".format),
        created=st.floats(0, 1e11),
        spec=st.builds(
            JobSpec,
            kind=st.sampled_from(KINDS),
            model=st.just("demo"),
            data=st.just("päth.jsonl"),
            budgets=st.lists(
                st.floats(0, 1, exclude_min=True, exclude_max=True),
                min_size=1,
                max_size=4,
                unique=True,
            ),
            tolerance=st.floats(0, 1),
            items=st.none() | st.integers(1, 9),
            engine_args=st.just({"dtype": "float16"}),
        ),
        reason=st.none() | st.text(),
    )
)
def test_a_job_file_gives_back_its_job(job: Job) -> None:
    assert Job.model_validate_json(job.model_dump_json(indent=2)) == job
