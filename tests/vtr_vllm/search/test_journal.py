"""The journal: durable rows, and what a second process makes of them."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Index, Text, create_engine, inspect
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from vtr_vllm.errors import ConfigurationError, EvaluationFailed
from vtr_vllm.schedules import RankRule
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.journal import Begun, EvaluationRow, Journal, Key, Measured

WHOLE = Candidate((1.0,) * 4)
CUT = Candidate((1.0, 1.0, 0.5, 0.5), (RankRule.parse("last"),))
BEGUN = [Begun(WHOLE, "items-a", 0, 2), Begun(CUT, "items-a", 0, 2)]
FOUND = [
    Measured(
        [[1.0, -0.25, 0.0], [0.0, -1 / 3, 0.0]],
        [[[["▁red", {"▁red": -0.1, "\ud83d": -2.5}]], 16, 9]],
        1.5,
        32.0,
        64.0,
    ),
    Measured([[1.0, -0.5, 0.125], [0.0, -10.0, 0.6931471805599453]], None, 1.5, 31.0, 64.0),
]
KEYS = [Key(begun.candidate.key, begun.items) for begun in BEGUN]
MODEL = {"model": "m", "vllm": "0.32"}


class Folder:
    """Journals of one file, one after another or at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def open(self, search: str = "one", evaluator: dict[str, str] = MODEL) -> Journal:
        return Journal(self.url, search, evaluator, seed=7)

    def rows(self) -> list[dict[str, object]]:
        """As any other program sees them."""
        with sqlite3.connect(self.path) as connection:
            connection.row_factory = sqlite3.Row
            found = connection.execute("SELECT * FROM evaluations ORDER BY id").fetchall()
        return [dict(row) for row in found]

    def states(self) -> list[object]:
        return [row["state"] for row in self.rows()]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "journal.sqlite")


def test_a_row_is_there_before_and_after_the_engine_ran(folder):
    journal = folder.open()
    ids = journal.begin("stage", BEGUN)
    assert folder.states() == ["running", "running"]
    assert [journal.find(key) for key in KEYS] == [None, None]
    journal.finish(ids, FOUND)
    assert folder.states() == ["done", "done"]
    assert [journal.find(key) for key in KEYS] == FOUND


def test_a_row_is_complete(folder):
    journal = folder.open()
    journal.finish(journal.begin("stage", BEGUN), FOUND)
    row = folder.rows()[1]
    assert row.pop("started") > 1.6e9  # seconds since 1970
    assert {name: row[name] for name in row if name not in ("candidate_json", "outcomes")} == {
        "id": 2,
        "search": "one",
        "stage": "stage",
        "candidate": CUT.key,
        "items": "items-a",
        "first": 0,
        "count": 2,
        "evaluator": json.dumps(MODEL),
        "evaluator_key": hashlib.sha256(json.dumps(MODEL).encode()).hexdigest(),
        "seed": 7,
        "state": "done",
        "seconds": 1.5,
        "busy": 31.0,
        "room": 64.0,
        "answers": None,
        "error": None,
    }
    assert Candidate.from_dict(json.loads(str(row["candidate_json"]))) == CUT
    assert json.loads(str(row["outcomes"])) == FOUND[1].outcomes


def test_what_is_done_is_found_again(folder):
    first = folder.open()
    first.finish(first.begin("stage", BEGUN), FOUND)
    first.close()
    again = folder.open()
    assert [again.find(key) for key in KEYS] == FOUND
    assert again.find(Key(CUT.key, "items-b")) is None
    assert again.find(Key("no such", "items-a")) is None


def test_another_search_finds_it_too(folder):
    first = folder.open("one")
    first.finish(first.begin("stage", BEGUN), FOUND)
    assert folder.open("two").find(KEYS[0]) == FOUND[0]


@pytest.mark.parametrize("changed", [{"model": "n"}, {"vllm": "0.33"}, {"dtype": "float16"}])
def test_another_models_answers_are_not_found(folder, changed):
    first = folder.open()
    first.finish(first.begin("stage", BEGUN), FOUND)
    assert folder.open("one", MODEL | changed).find(KEYS[0]) is None


def test_the_order_in_which_versions_are_named_does_not_matter(folder):
    first = folder.open()
    first.finish(first.begin("stage", BEGUN), FOUND)
    again = folder.open("one", dict(reversed(MODEL.items())))
    assert again.find(KEYS[0]) == FOUND[0]


def test_running_rows_of_an_ended_process_become_interrupted(folder):
    first = folder.open("one")
    first.finish(first.begin("stage", BEGUN[:1]), FOUND[:1])
    first.begin("stage", BEGUN[1:])
    first.close()
    again = folder.open("one")
    assert folder.states() == ["done", "interrupted"]
    assert again.find(KEYS[1]) is None
    assert again.states() == {"done": 1, "interrupted": 1}


def test_running_rows_of_another_search_stay(folder):
    other = folder.open("other")
    ids = other.begin("stage", BEGUN[:1])
    ours = folder.open("ours")
    assert folder.states() == ["running"]
    assert ours.states() == {}
    other.finish(ids, FOUND[:1])
    assert folder.states() == ["done"]


def test_failed_rows_keep_the_reason(folder):
    journal = folder.open()
    journal.fail(journal.begin("stage", BEGUN), "the engine's own reason")
    again = folder.open()
    assert folder.states() == ["failed", "failed"]
    assert [row["error"] for row in folder.rows()] == ["the engine's own reason"] * 2
    assert again.find(KEYS[0]) is None
    again.finish(again.begin("stage", BEGUN[:1]), FOUND[:1])
    assert folder.states() == ["failed", "failed", "done"]


def test_rows_are_finished_all_at_once_or_not_at_all(folder):
    journal = folder.open()
    ids = journal.begin("stage", BEGUN)
    with pytest.raises(ValueError, match="zip"):
        journal.finish(ids, FOUND[:1])
    assert folder.states() == ["running", "running"]
    assert journal.find(KEYS[0]) is None


def test_a_database_that_fails_later_ends_the_search_with_a_reason(folder):
    journal = folder.open()
    ids = journal.begin("stage", BEGUN)
    with sqlite3.connect(folder.path) as connection:
        connection.execute("DROP TABLE evaluations")
    for write in (
        lambda: journal.begin("stage", BEGUN),
        lambda: journal.finish(ids, FOUND),
        lambda: journal.fail(ids, "no reason"),
    ):
        with pytest.raises(EvaluationFailed, match="journal cannot be written .*evaluations"):
            write()
    with pytest.raises(EvaluationFailed, match="journal cannot be read .*evaluations"):
        journal.find(KEYS[0])
    with pytest.raises(EvaluationFailed, match="journal cannot be read .*evaluations"):
        journal.states()


def test_what_another_search_finds_meanwhile_is_seen(folder):
    ours, other = folder.open("ours"), folder.open("other")
    assert ours.find(KEYS[0]) is None
    other.finish(other.begin("stage", BEGUN), FOUND)
    assert [ours.find(key) for key in KEYS] == FOUND


def test_a_connection_that_was_lost_in_between_is_made_anew(folder):
    """A server ends what is idle for long; asked before each use, the pool finds out by itself."""
    journal = folder.open()
    with journal._engine.connect() as connection:
        lost = connection.connection.dbapi_connection
    lost.close()
    journal.finish(journal.begin("stage", BEGUN), FOUND)
    assert folder.states() == ["done", "done"]


def test_a_long_reason_is_cut(folder):
    journal = folder.open()
    journal.fail(journal.begin("stage", BEGUN[:1]), "x" * 100_000)
    assert len(str(folder.rows()[0]["error"])) == 10_000


_BEFORE = """
CREATE TABLE evaluations (
    id INTEGER NOT NULL PRIMARY KEY, search TEXT NOT NULL, stage VARCHAR(64) NOT NULL,
    candidate VARCHAR(24) NOT NULL, candidate_json JSON NOT NULL, items VARCHAR(64) NOT NULL,
    first INTEGER NOT NULL, count INTEGER NOT NULL, evaluator TEXT NOT NULL,
    seed INTEGER NOT NULL, state VARCHAR(16) NOT NULL, started FLOAT NOT NULL, seconds FLOAT,
    busy FLOAT, room FLOAT, outcomes JSON, answers JSON, error TEXT);
CREATE INDEX by_candidate ON evaluations (candidate, evaluator);
"""


def test_a_journal_of_before_the_evaluators_key_goes_on(folder):
    """Its rows are found, by the very evaluator that they were of."""
    row = {
        "search": "/out",
        "stage": "stage",
        "candidate": CUT.key,
        "candidate_json": json.dumps(CUT.to_dict()),
        "items": "items-a",
        "first": 0,
        "count": 2,
        "evaluator": json.dumps(MODEL),
        "seed": 7,
        "state": "done",
        "started": 1.7e9,
        **dict.fromkeys(("seconds", "busy", "room"), 1.0),
        "outcomes": json.dumps(FOUND[1].outcomes),
        "answers": "null",
    }
    names = ", ".join(row)
    with sqlite3.connect(folder.path) as connection:
        connection.executescript(_BEFORE)
        places = ", ".join("?" * len(row))
        connection.execute(
            f"INSERT INTO evaluations ({names}) VALUES ({places})", tuple(row.values())
        )
    journal = folder.open()
    assert journal.find(KEYS[1]) == Measured(FOUND[1].outcomes, None, 1.0, 1.0, 1.0)
    assert folder.open("one", MODEL | {"vllm": "0.33"}).find(KEYS[1]) is None
    journal.finish(journal.begin("stage", BEGUN[:1]), FOUND[:1])
    assert folder.states() == ["done", "done"]
    indexes = inspect(create_engine(folder.url)).get_indexes("evaluations")
    assert {"by_evaluation", "by_search"} <= {index["name"] for index in indexes}


@pytest.mark.parametrize("dialect", [sqlite, postgresql, mysql])
def test_every_database_takes_the_table(dialect):
    """MySQL wants bounded columns in an index, of at most 3,072 bytes, four to a character."""
    table = EvaluationRow.__table__
    assert str(CreateTable(table).compile(dialect=dialect.dialect()))
    for index in table.indexes:
        assert isinstance(index, Index)
        assert str(CreateIndex(index).compile(dialect=dialect.dialect()))
        assert not any(isinstance(column.type, Text) for column in index.columns)
        assert sum(4 * column.type.length for column in index.columns) <= 3072


def test_an_evaluation_is_looked_up_by_an_index(folder):
    journal = folder.open()
    query = (
        "SELECT * FROM evaluations WHERE evaluator_key = 'a' AND candidate = 'b' AND items = 'c'"
    )
    with journal._engine.connect() as connection:
        (plan,) = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").fetchall()
    assert "USING INDEX by_evaluation (evaluator_key=? AND candidate=? AND items=?)" in plan[3]


_WRITER = """
import os, signal, sys
from tests.vtr_vllm.search.test_journal import BEGUN, FOUND, Folder
from pathlib import Path
journal = Folder(Path(sys.argv[1])).open()
journal.finish(journal.begin("stage", BEGUN[:1]), FOUND[:1])
journal.begin("stage", BEGUN[1:])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_rows_outlive_a_killed_process(folder):
    command = [sys.executable, "-c", _WRITER, str(folder.path)]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    assert ended.returncode == -signal.SIGKILL
    assert folder.states() == ["done", "running"]
    again = folder.open()
    assert folder.states() == ["done", "interrupted"]
    assert again.find(KEYS[0]) == FOUND[0]


@pytest.mark.parametrize("pragma", [("journal_mode", "wal"), ("synchronous", 2)])
def test_a_committed_row_is_on_the_disk(folder, pragma):
    """WAL with synchronous=FULL (2): what SQLite's manual asks for against a power cut."""
    name, value = pragma
    journal = folder.open()
    with journal._engine.connect() as connection:
        assert connection.exec_driver_sql(f"PRAGMA {name}").scalar() == value


@pytest.mark.parametrize(
    "url",
    [
        "no URL at all",
        "sqlite:////no/such/folder/journal.sqlite",
        "nodialect:///journal.sqlite",
        "postgresql+psycopg2cffi://host/name",  # a driver that is not installed
        "sqlite:///{folder}",  # no file
        "sqlite:///{text}",  # no database
    ],
)
def test_a_url_that_cannot_be_used_is_refused(tmp_path, url):
    text = tmp_path / "text.sqlite"
    text.write_text("not a database, and longer than the header of one would be\n" * 4)
    url = url.format(folder=tmp_path, text=text)
    with pytest.raises(ConfigurationError, match="SQLAlchemy URL such as") as error:
        Journal(url, "one", MODEL, seed=0)
    assert url in str(error.value)


def test_a_refused_url_does_not_tell_its_password():
    with pytest.raises(ConfigurationError, match="nosuch://user:.*@host") as refused:
        Journal("nosuch://user:secret@host/name", "search", {}, 0)
    assert "secret" not in str(refused.value)
