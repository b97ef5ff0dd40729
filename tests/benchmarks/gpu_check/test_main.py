"""Stages run one after another, whatever becomes of each; what they find is kept at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu_check import __main__ as main
from benchmarks.gpu_check import fast, page, right
from benchmarks.gpu_check.stages import STAGES, Stage
from tests.running import wait_until

META = {"gpu": None, "date": "a day", "commit": "new", "dry_run": False, "fast_start": True}
FINDING = {"stage": "s", "name": "n", "ok": True, "text": "t", "numbers": {}, "at_s": 0.0}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Make a stage of a script, and run it; returns its entry and whether it was good."""

    def make(script: str, seconds: float = 30, out: Path | None = None):
        path = tmp_path / "stage.py"
        path.write_text(f"FINDING = {FINDING!r}\nimport json, sys, time\n{textwrap.dedent(script)}")
        monkeypatch.setattr(Stage, "command", lambda *_: [sys.executable, str(path)])
        results = main.Results(out or tmp_path / "results.json", META)
        options = main.parse(["--dry-run"])
        good = main.run(STAGES[0], options, results, seconds)
        return json.loads((tmp_path / "results.json").read_text())["stages"]["environment"], good

    return make


def test_findings_are_kept(stage) -> None:
    entry, good = stage("print(json.dumps(FINDING))")
    assert good
    assert entry["findings"] == [FINDING]
    assert entry["outcome"] == "ok"


def test_a_finding_that_is_wrong_fails_the_stage(stage) -> None:
    entry, good = stage("print(json.dumps(FINDING | {'ok': False}))")
    assert not good
    assert entry["outcome"] == "failed"


def test_a_stage_that_breaks_off_keeps_its_findings_and_its_log(stage) -> None:
    entry, good = stage("print(json.dumps(FINDING), flush=True)\nsys.exit('out of memory')")
    assert not good
    assert entry["outcome"] == "broke off with exit code 1"
    assert entry["findings"] == [FINDING]
    assert "out of memory" in entry["log"]


def test_a_stage_is_ended_when_its_time_is_over(stage, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    add = main.Results.add

    def add_last(*given) -> None:
        add(*given)
        clock.now = 601.0

    monkeypatch.setattr(main, "time", clock)
    monkeypatch.setattr(main.Results, "add", add_last)
    entry, good = stage("print(json.dumps(FINDING), flush=True)\ntime.sleep(600)", seconds=300)
    assert not good
    assert entry["outcome"] == "time over"
    assert entry["findings"] == [FINDING]


def test_a_stage_that_says_nothing_is_waited_for_no_longer_than_its_time() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert list(main.lines_of(process, 0.1)) == []
        process.kill()


@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt(), OSError("disk full")])
def test_a_run_that_is_ended_keeps_what_it_has_and_leaves_nothing_running(
    end: BaseException, stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def interrupted(process, seconds):
        seen.append(process)
        yield json.dumps(FINDING)
        raise end

    monkeypatch.setattr(main, "lines_of", interrupted)
    monkeypatch.setattr(main.stop, "__defaults__", (0,))
    with pytest.raises(type(end)):
        stage("time.sleep(600)")
    entry = json.loads((tmp_path / "results.json").read_text())["stages"]["environment"]
    outside = "ended from outside"
    assert entry["outcome"] == (f"broke off: {end!r}" if isinstance(end, OSError) else outside)
    assert entry["findings"] == [FINDING]
    assert seen[0].poll() is not None
    assert not main.RUNNING


def test_a_line_that_is_no_finding_ends_its_stage_alone(
    stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main.stop, "__defaults__", (0,))
    entry, good = stage("print('Loading', flush=True)\ntime.sleep(600)")
    assert not good
    assert entry["outcome"] == "broke off with a line that is no finding: Loading"
    assert not main.RUNNING


def test_an_interrupt_ends_stages_that_run_beside_each_other(
    stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "stage.py"
    path.write_text("import time\ntime.sleep(600)")
    monkeypatch.setattr(Stage, "command", lambda *_: [sys.executable, str(path)])
    monkeypatch.setattr(main.stop, "__defaults__", (0,))

    def interrupt() -> None:
        wait_until(lambda: main.RUNNING)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            main.main(["--dry-run", "--out", str(tmp_path / "r.json")])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not main.RUNNING


def test_other_stages_of_an_earlier_run_stay_with_its_date_and_commit(
    stage, tmp_path: Path
) -> None:
    run = META | {"date": "an earlier day", "commit": "old", "fast_start": False}
    entry = {"meta": run, "outcome": "ok", "findings": []}
    (tmp_path / "results.json").write_text(json.dumps({"gpu": None, "stages": {"right": entry}}))
    stage("print(json.dumps(FINDING))")
    found = json.loads((tmp_path / "results.json").read_text())
    assert {name: kept["meta"] for name, kept in found["stages"].items()} == {
        "right": run,
        "environment": META,
    }
    shown = page.section(found)
    assert "### right\n\nan earlier day, commit old. Outcome: ok." in shown
    assert "### environment\n\na day, commit new, with --fast-start. Outcome: ok." in shown


@pytest.mark.parametrize(
    ("gpu", "name"),
    [("NVIDIA H100 80GB HBM3", "gpu-nvidia-h100-80gb-hbm3.json"), (None, "no-gpu.json")],
)
def test_a_run_without_the_first_stage_writes_the_file_of_its_card(
    gpu: str | None, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "stage.py"
    script.write_text(f"import json\nprint(json.dumps({FINDING!r}))")
    monkeypatch.setattr(Stage, "command", lambda *_: [sys.executable, str(script)])
    monkeypatch.setattr(main, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(main, "machine", lambda: {"gpu": gpu, "date": "a day", "commit": "0"})
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main.main(["--stages", "fast"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    (path,) = (tmp_path / "results").iterdir()
    assert path.name == name
    found = json.loads(path.read_text())
    assert found["stages"]["fast"]["findings"] == [FINDING]
    assert page.section(found).startswith(f"## {gpu or 'no GPU'}\n")
    assert page.sentence(found) == ""


def test_no_time_is_said_and_is_not_good(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = main.main(["--dry-run", "--minutes", "0.01", "--out", str(tmp_path / "r.json")])
    assert code == 1
    assert capsys.readouterr().out.count("left out") == len(STAGES)


def test_each_stage_is_a_module() -> None:
    folder = Path(main.__file__).parent
    assert all((folder / f"{stage.name}.py").exists() for stage in STAGES)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_each_stage_knows_its_options(stage: Stage) -> None:
    _, _, module, *options = stage.command(True, 100, Path("traces"), True)
    assert module == f"benchmarks.gpu_check.{stage.name}"
    if stage.name == "environment":
        assert options == []
    elif stage.measures:
        assert fast.parse(stage.name, options).seconds == 100
    else:
        assert right.parse(options).dry_run
