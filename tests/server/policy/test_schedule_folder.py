"""A folder of schedules that changes while it is read, and while a server runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY

from tests.running import wait_until
from tests.server.bad_input import CHAT, chat_body
from tests.server.conftest import NAME, Server
from tests.vtr_vllm.adaptive.families import family
from vtr_server.policy.requested_budget import Bounds, Switch
from vtr_server.policy.schedule_choice import ScheduleChooser
from vtr_server.policy.schedule_folder import Offer, ScheduleFolder
from vtr_server.policy.vtr_field import Ask
from vtr_vllm.adaptive.family import FILE
from vtr_vllm.errors import InvalidBudget, ScheduleError, UnknownSchedule
from vtr_vllm.schedules import (
    ModelGeometry,
    RankRule,
    Schedule,
    ScheduleBook,
    explicit,
    fastv,
)

GEOMETRY = ModelGeometry(
    layers=12, hidden_size=128, intermediate_size=320, heads=2, kv_heads=2, head_dim=64
)
TEMPLATE = ScheduleChooser(
    ScheduleBook(GEOMETRY), {"full": 1.0, "kept": "a"}, lambda b: (1.0, b.maximum)
)
OPEN = Bounds(0.0, 1.0)
FAMILY_KEEPS = ((0.125,) * 6 + (0.0,) * 6, (0.5,) * 6 + (0.25,) * 6)


def schedule(name: str, budget: float, geometry: ModelGeometry = GEOMETRY) -> Schedule:
    return replace(fastv(geometry, budget), name=name, method="g-search", budget=budget)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    schedule("a", 0.5).save(tmp_path / "a.json")
    return tmp_path


@pytest.fixture
def folded(folder: Path) -> ScheduleFolder:
    return ScheduleFolder(GEOMETRY, folder, TEMPLATE)


def names(folded: ScheduleFolder) -> set[str]:
    return set(folded.offer.chooser.book.names()) - {"full"}


def reloads(outcome: str) -> float:
    return REGISTRY.get_sample_value("vtr_schedule_reloads_total", {"outcome": outcome}) or 0.0


def test_a_caller_is_offered_what_its_policy_allows(folded: ScheduleFolder, folder: Path) -> None:
    schedule("b", 0.25).save(folder / "b.json")
    folded.reload_if_changed()
    offer, policy = folded.offer, Bounds(0.3, 0.5)
    told = offer.described(policy, 0.5)
    assert told["tiers"] == {"kept": 0.5}
    asked = {name: told["budget"][name] for name in ("minimum", "maximum", "default")}
    assert asked == {"minimum": 0.3, "maximum": 0.5, "default": 0.5}
    assert told["data"] == offer.description["data"]
    assert offer.aliases_within(policy) == ["kept", "0.5", "auto", "auto+reuse"]
    assert offer.aliases_within(OPEN) == offer.aliases
    for alias in offer.aliases:
        listed = alias in offer.aliases_within(policy)
        assert offer.has_alias(alias, policy) is listed
    assert offer.described(OPEN, 1.0) == offer.description


def test_a_new_file_is_offered_everywhere(folded: ScheduleFolder, folder: Path) -> None:
    before = reloads("ok")
    assert folded.reload_if_changed() == []
    assert reloads("ok") == before, "nothing changed, nothing read"
    schedule("b", 0.25).save(folder / "b.json")
    assert folded.reload_if_changed() == []
    offer = folded.offer
    assert names(folded) == {"a", "b"}
    assert [each["name"] for each in offer.description["data"]] == ["a", "b", "full"]
    assert offer.aliases == ["full", "kept", "0.5", "0.25", "auto", "auto+reuse"]
    assert offer.chooser.choose(Ask(budget=0.25), OPEN).schedule.name == "b"
    assert offer.chooser.choose(Ask(budget="auto"), OPEN).budget == 1.0
    assert reloads("ok") == before + 1
    assert REGISTRY.get_sample_value("vtr_schedules") == 3  # and full


def test_a_reader_that_began_earlier_does_not_put_the_older_state_back(
    folded: ScheduleFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POST /admin/schedules/reload and the look of each second, at the same time."""
    load, read_old, go_on = Schedule.load, threading.Event(), threading.Event()

    def slow(path: Path) -> Schedule:
        found = load(path)
        if not read_old.is_set():  # the first reader has the old file, and takes its time
            read_old.set()
            assert go_on.wait(60)
        return found

    monkeypatch.setattr(Schedule, "load", slow)
    first = threading.Thread(target=folded.reload)
    first.start()
    assert read_old.wait(60)
    schedule("a", 0.375).save(folder / "a.json")
    second = threading.Thread(target=folded.reload_if_changed)
    second.start()
    second.join(0.5)  # without a lock it is done now
    go_on.set()
    first.join(60)
    second.join(60)
    assert folded.offer.chooser.book.by_name("a").budget == 0.375
    assert folded.reload_if_changed() == [], "and nothing is left to be seen"


def test_a_request_keeps_the_offer_that_it_began_with(folded: ScheduleFolder, folder: Path) -> None:
    begun = folded.offer
    (folder / "a.json").unlink()
    folded.reload_if_changed()
    assert names(folded) == set()
    assert "kept" not in folded.offer.aliases
    assert begun.chooser.choose(Ask(tier="kept"), OPEN).schedule.name == "a"


BROKEN = {
    "nothing": b"",
    "half a file": b'{"version": 1, "name": "a", "keep": [1.0, ',
    "no text": b"\xff\xfe\x00",
    "no object": b"[]",
    "no schedule": b"{}",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file_leaves_the_schedule_that_it_was(
    folded: ScheduleFolder, folder: Path, text: bytes
) -> None:
    before, rejected = folded.offer.description, reloads("rejected")
    (folder / "a.json").write_bytes(text)
    [reason] = folded.reload_if_changed()
    assert "a.json" in reason
    assert folded.offer.description == before
    assert folded.reload_if_changed() == [], "said once"
    assert reloads("rejected") == rejected + 1
    schedule("a", 0.375).save(folder / "a.json")
    assert folded.reload_if_changed() == []
    assert folded.offer.chooser.book.by_name("a").budget == 0.375


def test_a_broken_file_keeps_no_other_from_coming_or_going(
    folded: ScheduleFolder, folder: Path
) -> None:
    schedule("b", 0.25).save(folder / "b.json")
    folded.reload_if_changed()
    (folder / "a.json").write_text("{")
    (folder / "b.json").unlink()
    schedule("c", 0.75).save(folder / "c.json")
    assert len(folded.reload_if_changed()) == 1
    assert names(folded) == {"a", "c"}


def test_a_file_that_never_was_good_is_left_out(folded: ScheduleFolder, folder: Path) -> None:
    (folder / "b.json").write_text("{")
    schedule("c", 0.25, replace(GEOMETRY, layers=10)).save(folder / "c.json")
    (folder / "d.json").mkdir()
    (folder / "e.json").symlink_to("nowhere")
    assert len(folded.reload_if_changed()) == 3
    assert names(folded) == {"a"}


@pytest.mark.parametrize("rival", [schedule("a", 0.25), schedule("b", 0.5)], ids=["name", "budget"])
def test_of_two_that_claim_the_same_neither_wins(
    folded: ScheduleFolder, folder: Path, rival: Schedule
) -> None:
    before = folded.offer
    rival.save(folder / "0.json")
    [reason] = folded.reload_if_changed()
    assert "two schedules are named a" in reason or "both claim budget 0.5" in reason
    assert folded.offer is before
    (folder / "a.json").unlink()
    assert folded.reload_if_changed() == []
    assert names(folded) == {rival.name}


def test_what_cannot_run_in_the_bands_keeps_no_other_from_coming(folder: Path) -> None:
    book = ScheduleBook(GEOMETRY, band_starts=(0, 6))
    folded = ScheduleFolder(GEOMETRY, folder, replace(TEMPLATE, book=book))
    inside = explicit(GEOMETRY, (1.0,) * 4 + (0.5,) * 8, [RankRule.parse("self")], name="inside")
    inside.save(folder / "inside.json")
    schedule("b", 0.25).save(folder / "b.json")
    [reason] = folded.reload_if_changed()
    assert "inside.json" in reason
    assert names(folded) == {"a", "b"}


def test_schedules_that_cannot_be_offered_are_rejected_once(
    folded: ScheduleFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folded.offer

    def refuse(chooser: ScheduleChooser) -> Offer:
        raise InvalidBudget("a tier has none")

    monkeypatch.setattr(Offer, "of", refuse)
    schedule("b", 0.25).save(folder / "b.json")
    assert folded.reload_if_changed() == ["a tier has none"]
    assert folded.reload_if_changed() == [], "said once"
    assert folded.offer is before


def test_a_folder_that_vanishes_takes_nothing_with_it(folded: ScheduleFolder, folder: Path) -> None:
    away = folder.with_name(f"{folder.name}-away")
    folder.rename(away)
    [reason] = folded.reload_if_changed()
    assert "bring it back" in reason
    assert names(folded) == {"a"}
    schedule("b", 0.25).save(away / "b.json")
    away.rename(folder)
    assert folded.reload_if_changed() == []
    assert names(folded) == {"a", "b"}


def test_links_are_followed_when_they_are_turned(tmp_path: Path) -> None:
    """As Kubernetes updates a mounted ConfigMap: the same names, another folder behind them."""
    for version, budget in (("1", 0.5), ("2", 0.25)):
        (tmp_path / version).mkdir()
        schedule("a", budget).save(tmp_path / version / "a.json")
    (tmp_path / "data").symlink_to("1")
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "a.json").symlink_to("../data/a.json")
    folded = ScheduleFolder(GEOMETRY, folder, TEMPLATE)
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(tmp_path / "data")
    assert folded.reload_if_changed() == []
    assert folded.offer.chooser.book.by_name("a").budget == 0.25


def test_the_modules_of_the_engine_hold_after_every_reload(folder: Path) -> None:
    book = ScheduleBook(GEOMETRY, modules=(4,))
    folded = ScheduleFolder(GEOMETRY, folder, replace(TEMPLATE, book=book))

    def judged(cut: int) -> None:
        keep = (1.0,) * cut + (0.5,) * (12 - cut)
        explicit(GEOMETRY, keep, [RankRule.parse("atp")], name=f"at-{cut}").save(
            folder / f"at-{cut}.json"
        )

    judged(4)
    judged(5)
    [rejected] = folded.reload_if_changed()
    assert "has some before layers [4] alone" in rejected
    assert folded.offer.chooser.book.by_name("at-4").is_adaptive
    with pytest.raises(UnknownSchedule):
        folded.offer.chooser.book.by_name("at-5")


def test_the_bands_of_the_engine_hold_after_every_reload(folder: Path) -> None:
    """A cut inside of a band is no reused one, and may stand beside one of the same budget."""
    book = ScheduleBook(GEOMETRY, band_starts=(0, 6))
    folded = ScheduleFolder(GEOMETRY, folder, replace(TEMPLATE, book=book))

    def stored(name: str, cut: int) -> Schedule:
        rate = 1 - 3 / (12 - cut)
        keep = (1.0,) * cut + (rate,) * (12 - cut)
        return explicit(GEOMETRY, keep, [RankRule.parse("saliency")], name=name)

    replace(stored("inside", 4), budget=0.75).save(folder / "inside.json")
    replace(stored("between", 6), budget=0.75).save(folder / "between.json")
    assert folded.reload_if_changed() == []
    choose = folded.offer.chooser.choose
    assert choose(Ask(budget=0.75), OPEN).schedule.name == "inside"
    reused = choose(Ask(budget=0.75), OPEN, reuse=Switch(wanted=True))
    assert (reused.schedule.name, reused.reuse) == ("between", True)
    assert folded.offer.description["band_starts"] == [0, 6]


@pytest.mark.parametrize(
    ("wish", "known"),
    [
        *(("0.3", True), ("0.3+reuse", True), ("full+reuse", True), ("auto+reuse", True)),
        *(("kept", True), ("kept+reuse", False), ("gold", False), ("gold+reuse", False)),
        *(("+reuse", False), ("0+reuse", False), ("0.5+", False)),
    ],
)
def test_an_alias_is_known_if_it_can_be_asked_for(
    folded: ScheduleFolder, folder: Path, wish: str, known: bool
) -> None:
    assert folded.offer.has_alias(wish, OPEN) is known
    uncached = ScheduleFolder(GEOMETRY, folder, replace(TEMPLATE, caches_prefixes=False))
    assert uncached.offer.has_alias(wish, OPEN) is (known and "+" not in wish)


def test_a_server_does_not_start_with_a_faulty_folder(folder: Path) -> None:
    (folder / "b.json").write_text("{")
    with pytest.raises(ScheduleError, match="b.json"):
        ScheduleFolder(GEOMETRY, folder, TEMPLATE)
    with pytest.raises(ScheduleError, match="is no folder"):
        ScheduleFolder(GEOMETRY, folder / "none", TEMPLATE)


def test_without_a_folder_there_is_nothing_to_read() -> None:
    folded = ScheduleFolder(GEOMETRY, None, TEMPLATE)
    assert folded.reload() == []
    assert names(folded) == set()


def test_whoever_reads_meanwhile_sees_a_complete_offer(
    folded: ScheduleFolder, folder: Path
) -> None:
    done, wrong = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            offer = folded.offer
            described = {each["name"] for each in offer.description["data"]}
            if described != set(offer.chooser.book.names()) or "a" not in described:
                wrong.append(described)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in range(25):
            file = folder / f"{step % 4}.json"
            if step % 5 == 4:
                (folder / "a.json").write_text("{" * step)
            elif file.exists():
                file.unlink()
            else:
                schedule(f"s{step}", 0.2 + step / 100).save(file)
            folded.reload_if_changed()
    finally:
        done.set()
        reader.join()
    assert wrong == []
    expected = {Schedule.load(file).name for file in folder.glob("[0-9].json")}
    assert names(folded) == expected | {"a"}


def test_a_file_of_the_same_size_and_time_is_seen_by_its_inode(
    folded: ScheduleFolder, folder: Path
) -> None:
    file, status = folder / "a.json", (folder / "a.json").stat()
    other = folder / "other"
    other.write_text(file.read_text().replace('"a"', '"z"'))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert file.stat().st_size == status.st_size
    folded.reload_if_changed()
    assert names(folded) == {"z"}


@contextmanager
def client_and_file(server: Server) -> Iterator[tuple[httpx.Client, Path]]:
    """Leaves the running server's folder, and its offer, as they were."""
    file = server.schedules / "hot.json"
    with server.client() as client:
        offered = client.get("/v1/schedules").json()
        try:
            yield client, file
        finally:
            file.unlink(missing_ok=True)
            wait_until(lambda: client.get("/v1/schedules").json() == offered)


@pytest.mark.engine
def test_a_running_server_takes_what_is_added_and_keeps_what_is_broken(server: Server) -> None:
    def asked(client: httpx.Client) -> httpx.Response:
        body = chat_body(NAME, vtr={"schedule": "hot"})
        return client.post(CHAT, json=body)

    with client_and_file(server) as (client, file):
        assert asked(client).json()["error"]["code"] == "unknown_schedule"
        stored = client.get("/v1/schedules").json()
        geometry = ModelGeometry(**stored["geometry"])
        schedule("hot", 0.25, geometry).save(file)
        wait_until(lambda: asked(client).status_code == 200)
        facts = asked(client).json()["vtr"]
        assert (facts["schedule"], facts["source"], facts["budget"]) == ("hot", "searched", 0.25)
        assert f"{NAME}@0.25" in {each["id"] for each in client.get("/v1/models").json()["data"]}

        rejected = 'vtr_schedule_reloads_total{outcome="rejected"} '

        def count() -> float:
            text = client.get("/metrics").text
            return float(text.partition(rejected)[2].partition("\n")[0])

        before = count()
        file.write_text('{"name": "hot", ')
        wait_until(lambda: count() > before)
        assert asked(client).json()["vtr"] == facts
        file.unlink()
        wait_until(lambda: asked(client).status_code == 400)


def test_a_family_is_read_and_read_again(folder: Path, folded: ScheduleFolder) -> None:
    """A good one stays until it is replaced by a good one, or deleted."""
    assert folded.offer.chooser.family is None
    path = folder / FILE
    family(GEOMETRY, FAMILY_KEEPS).save(path)
    assert folded.reload_if_changed() == []
    held = folded.offer.chooser.family
    assert held is not None
    assert folded.offer.has_alias("0.4+adapt", OPEN)
    assert not folded.offer.has_alias("0.01+adapt", OPEN)
    assert ScheduleFolder(GEOMETRY, folder, TEMPLATE).offer.chooser.family is not None
    path.write_text("{")
    assert "family.json" in folded.reload_if_changed()[0]
    assert folded.offer.chooser.family is held
    with pytest.raises(ScheduleError, match=r"family\.json"):
        ScheduleFolder(GEOMETRY, folder, TEMPLATE)
    family().save(path)  # of another model
    assert "made for" in folded.reload_if_changed()[0]
    path.unlink()
    assert folded.reload_if_changed() == []
    assert folded.offer.chooser.family is None
