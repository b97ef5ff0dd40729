"""The journal: every evaluation is one durable row, so that a killed search loses at most one batch.

An evaluation is one candidate on one block of items. Its row is written before the engine starts on
it (``running``) and once more when it ends (``done`` with what was measured, or ``failed`` with the
reason). Rows that an ended process left ``running`` become ``interrupted``. None is ever removed.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    String,
    Text,
    create_engine,
    func,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy import event as sql_event
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from vtr_vllm.errors import ConfigurationError, EvaluationFailed
from vtr_vllm.search.candidates import Candidate

RUNNING, DONE, FAILED, INTERRUPTED = "running", "done", "failed", "interrupted"

_LONGEST_ERROR = 10_000  # MySQL's TEXT ends at 65,535 bytes


class _Base(DeclarativeBase):
    pass


class EvaluationRow(_Base):
    """One candidate on one block of items."""

    __tablename__ = "evaluations"
    __table_args__ = (
        Index("by_evaluation", "evaluator_key", "candidate", "items"),
        Index("by_search", "search", "state"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    search: Mapped[str] = mapped_column(String(64))
    """Whose row it is: one search writes under one id at a time."""
    stage: Mapped[str] = mapped_column(String(64))
    candidate: Mapped[str] = mapped_column(String(24))
    candidate_json: Mapped[dict[str, Any]] = mapped_column(JSON)
    items: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the block's items: images, questions, answers, metrics."""
    first: Mapped[int] = mapped_column(Integer)
    count: Mapped[int] = mapped_column(Integer)
    evaluator: Mapped[str] = mapped_column(Text)
    """Releases, model and dtype that the answers depend on, as sorted JSON."""
    evaluator_key: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of ``evaluator``, which is too long for an index in MySQL."""
    seed: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    started: Mapped[float] = mapped_column(Double)
    seconds: Mapped[float | None] = mapped_column(Double)
    """Its share of the wall time of the batch that it ran in."""
    busy: Mapped[float | None] = mapped_column(Double)
    room: Mapped[float | None] = mapped_column(Double)
    """Its shares of the batch's occupancy, ``busy / room``."""
    outcomes: Mapped[list[list[float]] | None] = mapped_column(JSON)
    """Per item: score, log-probability, divergence."""
    answers: Mapped[list[Any] | None] = mapped_column(JSON)
    """The unreduced model's answers, which the others are compared with; null for the others."""
    error: Mapped[str | None] = mapped_column(Text)


@dataclass(frozen=True)
class Key:
    """What makes two evaluations the same."""

    candidate: str
    items: str


@dataclass(frozen=True)
class Begun:
    """An evaluation to be written down as running."""

    candidate: Candidate
    items: str
    first: int
    count: int


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    outcomes: list[list[float]]
    answers: list[Any] | None
    seconds: float
    busy: float
    room: float


class Journal:
    """The rows of one evaluator; raises ConfigurationError for a URL that cannot be used.

    ``search`` is an id of at most 64 characters, of one search alone: its rows that are running
    when it begins are taken for those of an ended process. Reading and writing raise
    EvaluationFailed where the database fails later on.
    """

    def __init__(self, url: str, search: str, evaluator: Mapping[str, str], seed: int) -> None:
        self._search, self._seed = search, seed
        self._evaluator = json.dumps(dict(evaluator), sort_keys=True)
        self._evaluator_key = _key_of(self._evaluator)
        self._done: dict[Key, Measured] = {}
        try:
            # a search thinks for minutes between two writes: the connection may be gone by then
            self._engine = create_engine(url, pool_pre_ping=True)
            if self._engine.dialect.name == "sqlite":
                _make_durable(self._engine)
            _Base.metadata.create_all(self._engine)
            _bring_up_to_date(self._engine)
            self._interrupt()
        except (SQLAlchemyError, ImportError, OSError) as err:
            raise ConfigurationError(
                f"journal {_shown(url)} cannot be opened ({err}); give a SQLAlchemy URL such as"
                " sqlite:///search.sqlite, and install the driver that it names"
            ) from err

    def find(self, key: Key) -> Measured | None:
        """What an earlier evaluation found, this search's or another's; None if none was done."""
        if key not in self._done and (found := self._read(key)) is not None:
            self._done[key] = found
        return self._done.get(key)

    def begin(self, stage: str, evaluations: Iterable[Begun]) -> list[int]:
        """Write rows as running; returns their ids."""
        now = time.time()
        rows = [
            EvaluationRow(
                search=self._search,
                stage=stage,
                candidate=begun.candidate.key,
                candidate_json=begun.candidate.to_dict(),
                items=begun.items,
                first=begun.first,
                count=begun.count,
                evaluator=self._evaluator,
                evaluator_key=self._evaluator_key,
                seed=self._seed,
                state=RUNNING,
                started=now,
            )
            for begun in evaluations
        ]
        with self._writing() as session:
            session.add_all(rows)
            session.flush()
            return [row.id for row in rows]

    def finish(self, ids: Sequence[int], measured: Sequence[Measured]) -> None:
        """Write what was found, all rows at once or none."""
        with self._writing() as session:
            rows = [session.get_one(EvaluationRow, row_id) for row_id in ids]
            for row, found in zip(rows, measured, strict=True):
                row.state, row.outcomes, row.answers = DONE, found.outcomes, found.answers
                row.seconds, row.busy, row.room = found.seconds, found.busy, found.room
            keys = [Key(row.candidate, row.items) for row in rows]
        self._done.update(zip(keys, measured, strict=True))

    def fail(self, ids: Sequence[int], reason: str) -> None:
        """Write that evaluations did not come to an end, and why."""
        with self._writing() as session:
            for row_id in ids:
                row = session.get_one(EvaluationRow, row_id)
                row.state, row.error = FAILED, reason[:_LONGEST_ERROR]

    def states(self) -> dict[str, int]:
        """Rows of this search by state."""
        query = (
            select(EvaluationRow.state, func.count())
            .where(EvaluationRow.search == self._search)
            .group_by(EvaluationRow.state)
        )
        with self._reading() as session:
            return dict(session.execute(query).all())

    def close(self) -> None:
        """Give back the connection."""
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        try:
            with Session(self._engine) as session:
                yield session
        except SQLAlchemyError as err:
            raise EvaluationFailed(
                f"the journal cannot be read ({err}); mend its database and run the same command"
                " again, which goes on from here"
            ) from err

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """A transaction, committed at its end."""
        try:
            with Session(self._engine) as session, session.begin():
                yield session
        except SQLAlchemyError as err:
            raise EvaluationFailed(
                f"the journal cannot be written ({err}); mend its database and run the same"
                " command again, which goes on from here"
            ) from err

    def _interrupt(self) -> None:
        left = (EvaluationRow.search == self._search) & (EvaluationRow.state == RUNNING)
        with Session(self._engine) as session:
            session.execute(update(EvaluationRow).where(left).values(state=INTERRUPTED))
            session.commit()

    def _read(self, key: Key) -> Measured | None:
        query = (
            select(
                EvaluationRow.outcomes,
                EvaluationRow.answers,
                EvaluationRow.seconds,
                EvaluationRow.busy,
                EvaluationRow.room,
            )
            .where(
                EvaluationRow.evaluator_key == self._evaluator_key,
                EvaluationRow.candidate == key.candidate,
                EvaluationRow.items == key.items,
                EvaluationRow.state == DONE,
            )
            .order_by(EvaluationRow.id)
            .limit(1)
        )
        with self._reading() as session:
            found = session.execute(query).first()
        return None if found is None else Measured(*found)


def _key_of(evaluator: str) -> str:
    return hashlib.sha256(evaluator.encode()).hexdigest()


def _bring_up_to_date(engine: Engine) -> None:
    """Add what a table of an earlier release lacks: columns, their values, indexes."""
    table = _Base.metadata.tables[EvaluationRow.__tablename__]
    there = {column["name"] for column in inspect(engine).get_columns(table.name)}
    with engine.begin() as connection:
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(engine.dialect)
                connection.execute(
                    text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
                )
        _fill_keys(connection)
    for index in table.indexes:
        index.create(engine, checkfirst=True)


def _fill_keys(connection: Connection) -> None:
    lacking = EvaluationRow.evaluator_key.is_(None)
    found = connection.scalars(select(EvaluationRow.evaluator).where(lacking).distinct()).all()
    for evaluator in found:
        of_it = lacking & (EvaluationRow.evaluator == evaluator)
        key = _key_of(evaluator)
        connection.execute(update(EvaluationRow).where(of_it).values(evaluator_key=key))


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _make_durable(engine: Engine) -> None:
    """A committed row survives a power cut, and readers do not wait for the writer."""

    @sql_event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
