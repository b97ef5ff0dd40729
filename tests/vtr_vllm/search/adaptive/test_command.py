"""``vtr search family`` from flags to files, on the simulated model."""

from __future__ import annotations

import json

import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items
from vtr_vllm.adaptive import ScheduleFamily
from vtr_vllm.adaptive.family import FILE
from vtr_vllm.search import cli
from vtr_vllm.search.session import Backend

SMALL = ("--budgets", "0.4,0.2", "--members", "4", "--items", "100", "--rounds", "1")


@pytest.fixture
def engines(monkeypatch) -> list[SimulatedEvaluator]:
    started: list[SimulatedEvaluator] = []

    def start(_: Backend) -> SimulatedEvaluator:
        started.append(SimulatedEvaluator(8, (64,)))
        return started[-1]

    monkeypatch.setattr(Backend, "open", start)
    return started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data: 300 items to search on, 200 others."""
    made = tmp_path_factory.mktemp("family")
    items(made, 300, name="data.jsonl")
    items(made, 200, first=300, name="test.jsonl")
    return made


def family(folder, *flags) -> int:
    given = ["--model", "demo", "--data", str(folder / "data.jsonl"), "--out", str(folder / "out")]
    (folder / "out").mkdir(exist_ok=True)
    return cli.main(["family", *given, *SMALL, *flags])


def test_one_prompt_of_another_kind_is_no_failure(tmp_path, engines):
    """Beside the kind of all the others nothing is left to learn from."""
    folder = tmp_path
    for name, count, first in (("data", 300, 0), ("test", 200, 300)):
        items(folder, count, first=first, name=f"{name}.jsonl")
        lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for number, line in enumerate(lines):
            line["kind"] = "most" if number else "one"
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    assert family(folder, "--split", f"test={folder / 'test.jsonl'}") == 0


def test_from_data_to_a_family_and_what_it_is_worth(folder, engines, capsys):
    split = f"test={folder / 'test.jsonl'}"
    assert family(folder, "--split", split) == 0
    made = ScheduleFamily.load(folder / "out" / FILE)
    assert len(made.members) == 4
    assert len(made.calibration.draws) == 300
    record = json.loads((folder / "out" / "report" / "adaptive.json").read_text())
    rows = record["splits"]["test"]
    assert {row["chooser"] for row in rows} == {
        *(
            "full",
            "one schedule (local-default)",
            "both",
            "words",
            "images",
            "unseen kind",
            "oracle",
        )
    }
    served = [row for row in rows if row["chooser"] == "both"]
    assert [row["budget"] for row in served] == [0.4, 0.2]
    for row in served:
        assert row["promised"] <= row["budget"] + 1e-9
        assert row["spent"] == pytest.approx(row["promised"], abs=0.06)  # 200 other prompts
        assert sum(row["mix"]) == pytest.approx(1, abs=0.001)
    by_name = {(row["chooser"], row["budget"]): row["score"] for row in rows}
    for budget in (0.4, 0.2):  # the law's words tell what is needed, its images nothing
        assert by_name["oracle", budget] >= by_name["both", budget]
    assert by_name["both", 0.2] > by_name["one schedule (local-default)", 0.2]
    assert by_name["words", 0.2] > by_name["images", 0.2]
    assert "| 0.2 | both |" in capsys.readouterr().out
    # once more: nothing is run twice, and the same is written
    before = (folder / "out" / FILE).read_text()
    assert family(folder, "--split", split) == 0
    assert engines[-1].runs == 0
    assert (folder / "out" / FILE).read_text() == before


def test_a_dry_run_runs_next_to_nothing(folder, engines, capsys):
    assert family(folder, "--dry-run") == 0
    assert "in all about" in capsys.readouterr().out
    assert engines[-1].runs <= 2


@pytest.mark.usefixtures("engines")
def test_too_little_data_is_refused(folder, tmp_path, capsys):
    items(tmp_path, 100, name="data.jsonl")
    assert family(tmp_path) == 1
    assert "has 100 items; a family wants at least 120" in capsys.readouterr().err
