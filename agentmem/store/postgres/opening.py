"""What is checked before a database is touched, and how it is brought to the current schema."""

from __future__ import annotations

import sqlalchemy as sa

from agentmem.errors import SchemaTooNew, StoreOpenError
from agentmem.store.postgres import isolation
from agentmem.store.postgres.engine import PostgresDatabase
from agentmem.store.retry import Disconnected
from agentmem.store.schema import Base

OLDEST_SERVER = 140_000
OLDEST_PGVECTOR = (0, 8)
"""The first with iterative scans, without which a filtered search finds too little."""


def preflight(database: PostgresDatabase, head: str) -> str | None:
    """Look at the database without writing anything.

    Returns:
        The schema's revision, or None when there is no store in it yet.

    Raises:
        StoreOpenError: it cannot become or is not a store.
        SchemaTooNew: a newer agentmem wrote it.
    """
    try:
        with database.read() as connection:
            _check_server(connection, database.name)
            return _revision(connection, database.name, head)
    except Disconnected as error:
        raise StoreOpenError(f"{error.__cause__ and _first_line(error.__cause__)}; nothing was changed") from error


def prepare(connection: sa.Connection) -> None:
    """Before the first migration: the extension.

    Raises:
        StoreOpenError: it is not there, and this role may not create it.
    """
    row = connection.execute(sa.text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")).one_or_none()
    if row is None:
        try:
            with connection.begin_nested():
                connection.exec_driver_sql("CREATE EXTENSION vector")
        except sa.exc.DBAPIError as error:
            raise StoreOpenError(
                "the database has no pgvector, and this role may not create it; as a superuser, run "
                f"CREATE EXTENSION vector ({_first_line(error.orig)})"
            ) from error
        return
    if tuple(int(part) for part in row.extversion.split(".")[:2]) < OLDEST_PGVECTOR:
        raise StoreOpenError(
            f"the database has pgvector {row.extversion}, the store needs 0.8 or newer; as a superuser, run "
            "ALTER EXTENSION vector UPDATE"
        )


def finish(connection: sa.Connection) -> None:
    """After the migrations: how bytes lie, of what no statistics are kept, and who sees what."""
    for name in ("kv_payload", "stream_record", "stream_tail"):
        connection.exec_driver_sql(f"ALTER TABLE {name} ALTER COLUMN data SET STORAGE EXTERNAL")  # it is dense already
    for name, table in Base.metadata.tables.items():
        # Statistics are samples, which outlive the rows that they were taken from.
        for column in (one for one in table.columns if isinstance(one.type, (sa.String, sa.LargeBinary, sa.JSON))):
            connection.exec_driver_sql(f'ALTER TABLE "{name}" ALTER COLUMN {column.name} SET STATISTICS 0')
    isolation.protect(connection)


def _check_server(connection: sa.Connection, name: str) -> None:
    row = connection.execute(
        sa.text(
            "SELECT current_setting('server_version_num')::int AS version, current_setting('server_encoding') AS code, "
            "rolsuper OR rolbypassrls AS unbound, current_schema() AS schema, current_user AS role "
            "FROM pg_roles WHERE rolname = current_user"
        )
    ).one()
    if row.version < OLDEST_SERVER:
        raise StoreOpenError(f"{name} is PostgreSQL {row.version // 10_000}; the store needs 14 or newer")
    if row.code != "UTF8":
        raise StoreOpenError(f"{name} has encoding {row.code}; create the database with ENCODING 'UTF8'")
    if row.unbound:
        raise StoreOpenError(
            f"role {row.role!r} of {name} is bound by no row-level security (superuser or BYPASSRLS), so nothing would "
            "keep one user's memories from another's; connect as an ordinary role that owns the database"
        )
    if row.schema is None:
        raise StoreOpenError(f"{name} has no schema to create tables in; set search_path to one of the role's own")


def _revision(connection: sa.Connection, name: str, head: str) -> str | None:
    tables = set(sa.inspect(connection).get_table_names())
    if not tables:
        return None
    if not {"alembic_version", "schema_meta", "memory"} <= tables:
        raise StoreOpenError(
            f"{name} holds tables of another program ({', '.join(sorted(tables)[:3])}); give the store a database or "
            "a schema of its own. It was left alone"
        )
    revision = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    if revision is not None and revision > head:
        raise SchemaTooNew(
            f"{name} has schema {revision}, this agentmem knows up to {head}; upgrade agentmem. It was left alone"
        )
    return None if revision is None else str(revision)


def _first_line(error: BaseException | None) -> str:
    original = getattr(error, "orig", error)
    return (str(original).strip().splitlines() or ["no reason given"])[0]
