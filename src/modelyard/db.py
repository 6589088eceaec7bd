"""The database: one declarative base, transactions, claims and the revision number that gateways follow.

SQLite in WAL is the embedded default; PostgreSQL is reached by the same URL-shaped setting. Rooms keep their tables
beside their services and take a `Session`; whoever opens the transaction decides what is atomic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sqlalchemy import (
    DDL,
    JSON,
    URL,
    Connection,
    DateTime,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    Update,
    create_engine,
    event,
    make_url,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import SingletonThreadPool

from modelyard.errors import Invalid

__all__ = ["Base", "Database", "Session", "append_only", "bump", "claim", "guard", "insert_new", "joined", "now", "revision"]

# recursive_triggers: INSERT OR REPLACE, too, fires the guards of append-only tables.
_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "recursive_triggers=ON", "busy_timeout=30000")


def now() -> datetime:
    """The present, aware, in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC on every database. SQLite forgets the zone: all are stored in UTC and it is put back. PostgreSQL
    gives moments in the zone of the connection."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a moment needs its zone: use modelyard.db.now() or an aware datetime")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of every table. Constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        list[Any]: JSON(),
        str: String(),
    }


Model = TypeVar("Model", bound=Base)


class Revision(Base):
    """One row: a number that grows whenever keys or routes change; gateways reload when it moves."""

    __tablename__ = "revision"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(Integer)


class Database:
    """A database by URL. `begin` is one write transaction, `read` one consistent read. Threads may share it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A write transaction: committed at the end, rolled back on any exception. SQLite takes the write lock at once."""
        with self._sessions() as session, session.begin():
            if self.engine.dialect.name == "sqlite":
                session.connection(execution_options={"modelyard_begin": "IMMEDIATE"})
            yield session
            if (action := _joined.get()) is not None:
                action(session)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only session; what is changed in it is thrown away, and rows read in it stay readable after it."""
        with self._sessions() as session:
            if self.engine.dialect.name != "sqlite":  # there each statement of a transaction has its own picture by default
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session
            session.expunge_all()
            session.rollback()

    def close(self) -> None:
        self.engine.dispose()


_joined: ContextVar[Callable[[Session], None] | None] = ContextVar("modelyard_joined", default=None)


@contextmanager
def joined(action: Callable[[Session], None]) -> Iterator[None]:
    """While this is open, every write transaction of this context (its threads included) ends with `action`: what it writes
    commits or rolls back with the transaction, and what it raises undoes it."""
    token = _joined.set(action)
    try:
        yield
    finally:
        _joined.reset(token)


def claim(
    session: Session, model: type[Model], *where: Any, order_by: Sequence[Any] = (), values: Mapping[str, Any]
) -> Model | None:
    """Take the first row that satisfies `where` and set `values` on it, in one statement; None where there is none.

    Two claimers never get one row: PostgreSQL skips rows that another holds, SQLite has one writer. `model` has a key `id`.
    """
    statement = claim_statement(model, *where, order_by=order_by, values=values).returning(model)
    found = session.scalars(statement, execution_options={"synchronize_session": False, "populate_existing": True})
    return found.one_or_none()


def claim_statement(model: type[Base], *where: Any, order_by: Sequence[Any] = (), values: Mapping[str, Any]) -> Update:
    """UPDATE … WHERE id = (SELECT id … LIMIT 1 FOR UPDATE SKIP LOCKED); SQLite leaves the locking clause out."""
    key = model.__table__.c.id
    first = select(key).where(*where).order_by(*order_by, key).limit(1).with_for_update(skip_locked=True)
    return update(model).where(key == first.scalar_subquery()).values(**values)


def insert_new(session: Session, model: type[Base], rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert rows, leaving out those that a unique constraint says are there already. Returns how many were inserted."""
    statement = _insert(session, model).on_conflict_do_nothing().returning(*model.__table__.primary_key)
    return len(session.execute(statement, list(rows)).all())


def bump(session: Session) -> None:
    """Tell gateways that keys or routes changed; call it in the transaction that changes them."""
    statement = _insert(session, Revision).values(id=1, number=1)
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"number": Revision.number + 1}))


def revision(session: Session) -> int:
    """The number that `bump` moves; 0 before the first."""
    return session.execute(select(Revision.number).where(Revision.id == 1)).scalar() or 0


def _insert(session: Session, model: type[Base]) -> Any:
    dialect = session.get_bind().dialect.name
    return (sqlite if dialect == "sqlite" else postgresql).insert(model)


_APPEND_ONLY: list[Table] = []


def append_only(table: Table) -> None:
    """Make the database itself refuse to change or remove rows of this table, however it was created."""
    _APPEND_ONLY.append(table)
    for dialect in ("sqlite", "postgresql"):
        for statement in _guards(table.name, dialect):
            ddl: Any = DDL(statement)  # type: ignore[no-untyped-call]
            event.listen(table, "after_create", ddl.execute_if(dialect=dialect))


def guard(connection: Connection, metadata: MetaData) -> None:
    """Put the guards of append-only tables in place (again); for migrations, which create tables in their own way."""
    for table in (table for table in _APPEND_ONLY if table.metadata is metadata):
        for statement in _guards(table.name, connection.dialect.name):
            connection.exec_driver_sql(statement)


def _guards(table: str, dialect: str) -> list[str]:
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER IF NOT EXISTS {table}_no_{verb} BEFORE {verb.upper()} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            for verb in ("update", "delete")
        ]
    return [
        f"CREATE OR REPLACE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$",
        f"CREATE OR REPLACE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()",
    ]


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite_engine(parsed)
        return create_engine(parsed, hide_parameters=True, pool_pre_ping=True, pool_size=8, max_overflow=40)
    except (ArgumentError, NoSuchModuleError) as error:
        raise Invalid("The setting 'database' is no URL we know: expected sqlite:///FILE or postgresql+psycopg://…") from error
    except ModuleNotFoundError as error:
        raise Invalid(f"The database URL needs the library '{error.name}', which is not installed.") from error


def _sqlite_engine(url: URL) -> Engine:
    # hide_parameters: an error's text reaches the log, and what callers sent does not belong there.
    options: dict[str, Any] = {"hide_parameters": True, "connect_args": {"timeout": 30, "check_same_thread": False}}
    if url.database and url.database != ":memory:":
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # SQLite gives its -wal and -shm files the same mode
        options |= {"pool_size": 8, "max_overflow": 40}
    else:
        options["poolclass"] = SingletonThreadPool  # one database a thread: for tests of one thread
    engine = create_engine(url, **options)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        # The driver would begin transactions behind our back: its handling is off, ours is explicit.
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            "recursive_triggers=ON",
            "busy_timeout=30000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        mode = connection.get_execution_options().get("modelyard_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine
