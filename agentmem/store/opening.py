"""What is checked before a file is touched, and how it is brought to the current schema."""

from __future__ import annotations

import os
import shutil
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import sqlalchemy as sa
import tenacity
from pysqlite3 import dbapi2 as driver

from agentmem.errors import SchemaTooNew, StoreBusy, StoreOpenError
from agentmem.store.engine import APPLICATION_ID, Database, refused, translate
from agentmem.store.postgres.engine import PostgresDatabase

HEAD = "0009"
"""The newest revision in ``migrations/versions``. Revisions are numbered, so that newer can be told from unknown."""

_NEW = 2**20
"""Bytes of a file that was being created: only then does a store have a journal of the kind that is rolled back."""

_MAGIC = b"SQLite format 3\0"

_PATIENTLY = tenacity.retry(
    retry=tenacity.retry_if_exception_type(driver.Error),
    wait=tenacity.wait_exponential(multiplier=0.02, exp_base=5),
    stop=tenacity.stop_after_attempt(4),
    reraise=True,
)
"""Looks again at a file that cannot be read: another process may be closing it, and remove its log."""


def preflight(path: Path) -> str | None:
    """Look at ``path`` without writing anything.

    Returns:
        The file's schema revision, or None when there is no store in it yet.

    Raises:
        StoreOpenError: it cannot become or is not a store.
        SchemaTooNew: a newer agentmem wrote it.
    """
    if path.is_dir():
        raise StoreOpenError(f"{path} is a directory; give the path of a file, such as {path / 'memory.db'}")
    folder = path.parent
    if not folder.is_dir():
        raise StoreOpenError(f"the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreOpenError(f"the folder {folder} cannot be written; the store needs room there for its log and lock")
    if not path.exists():
        return None
    if not os.access(path, os.R_OK | os.W_OK):
        raise StoreOpenError(f"{path} cannot be read and written; check its permissions")
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
    if not head:
        return None
    if head != _MAGIC:
        raise StoreOpenError(
            f"{path} is not an agentmem store (it does not begin like an SQLite file); it was left alone"
        )
    try:
        revision = _revision(path)
    except driver.Error as error:
        translated = translate(error, str(path))
        if isinstance(translated, StoreBusy):
            raise translated from error
        raise StoreOpenError(f"{translated}; it was left alone") from error
    if revision is not None and revision > HEAD:
        raise SchemaTooNew(
            f"{path} has schema {revision}, this agentmem knows up to {HEAD}; upgrade agentmem. It was left alone"
        )
    return revision


def refuse_newer(connection: sa.Connection) -> None:
    """For each write after the schema changed: this process must not write what a newer one has migrated.

    Raises:
        SchemaTooNew: a newer agentmem migrated the file while it was open here.
    """
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    if revision > HEAD:
        raise SchemaTooNew(
            f"a newer agentmem brought the store to schema {revision}, this process knows up to {HEAD}; nothing was "
            "written: upgrade agentmem and restart the process"
        )


@_PATIENTLY
def _revision(path: Path) -> str | None:
    """The schema revision inside, read through a connection that cannot write."""
    log = Path(f"{path}-wal")
    # Without a log everything is in the file, which can be read without leaving -wal and -shm beside it.
    try:
        how = "mode=ro" if log.stat().st_size else "immutable=1"
    except FileNotFoundError:
        how = "immutable=1"
    journal = Path(f"{path}-journal")
    # The power went in the very first write, and the file is whole only after a roll-back: a copy is rolled back.
    if journal.exists() and path.stat().st_size <= _NEW:
        with suppress(FileNotFoundError), TemporaryDirectory(prefix="agentmem-") as folder:
            for one in (path, journal):
                shutil.copy(one, folder)
            return _read_revision(path, f"file:{quote(str(Path(folder) / path.name))}?mode=rw")
    return _read_revision(path, f"file:{quote(str(path))}?{how}")


def _read_revision(path: Path, where: str) -> str | None:
    with closing(driver.connect(where, uri=True)) as connection:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == 0:  # a process died while it created the file
            return None
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        if application_id != APPLICATION_ID:
            raise StoreOpenError(f"{path} is a database of another program, not an agentmem store; it was left alone")
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(revision)


def reach(database: PostgresDatabase) -> None:
    """Look at a PostgreSQL database without writing anything, nor waiting for a lock.

    Raises:
        StoreOpenError, SchemaTooNew: as ``preflight``.
    """
    from agentmem.store.postgres import opening  # late: the driver is an extra

    opening.preflight(database, HEAD)


def bring_up_to_date(database: Database | PostgresDatabase) -> None:
    """Create the schema, or migrate it, under the database's lock; nothing is done when it is current.

    Raises:
        StoreOpenError, SchemaTooNew: as ``preflight``.
    """
    if isinstance(database, PostgresDatabase):
        from agentmem.store.postgres import opening  # late: the driver is an extra
        from agentmem.store.postgres.isolation import see_all

        if opening.preflight(database, HEAD) != HEAD:
            with database.write() as connection:
                opening.prepare(connection)
                see_all(connection)  # a migration works on everybody's rows
                upgrade(connection)
                opening.finish(connection)
        return
    migrate(database, None if database.path is None else preflight(database.path))


def migrate(database: Database, revision: str | None) -> None:
    """Bring the file from ``revision`` to HEAD in one transaction; nothing is done when it is there."""
    if revision == HEAD:
        return
    if database.path is not None and not database.path.exists():
        # What people told their assistant is nobody else's to read; SQLite gives its log the same mode.
        try:
            os.close(os.open(database.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise refused(error, database.path) from error
    with database.write() as connection:
        upgrade(connection)


def upgrade(connection: sa.Connection) -> None:
    """Run the missing migrations on an open transaction."""
    # Imported late: alembic costs 0.1 s, and most opens have nothing to migrate.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
