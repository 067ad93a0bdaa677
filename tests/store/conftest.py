from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from hypothesis import Phase, settings
from store_world import ADA, EMBEDDER, Where

from agentmem.store import ScopedMemories, Store

# "explain" traces every line that SQLAlchemy runs: minutes, to explain what the shrunken example shows anyway.
settings.register_profile("store", phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink], deadline=None)
settings.load_profile("store")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sqlite: about SQLite and its files; other tests run on PostgreSQL too")
    config.addinivalue_line("markers", "postgresql: about PostgreSQL alone")
    config.addinivalue_line("markers", "payloads: about payloads outside the database: files, and objects in a bucket")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is no fact of SQLite files holds on both engines."""
    if "backend" not in metafunc.fixturenames:
        return
    about = {mark.name for mark in metafunc.definition.iter_markers()}
    if "path" in metafunc.fixturenames or "sqlite" in about:
        backends = ["sqlite"]
    elif "postgresql" in about:
        backends = ["postgresql"]
    elif "payloads" in about:
        backends = ["sqlite", "s3"]
    else:
        backends = ["sqlite", "postgresql"]
    metafunc.parametrize("backend", backends)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def where(tmp_path: Path, backend: str) -> Where:
    """Where a store is made: asked for instead of ``path``, a test runs on both engines."""
    return tmp_path / "memory.db" if backend == "sqlite" else servers.empty_database()


@pytest.fixture
def store(where: Where, backend: str) -> Iterator[Store]:
    bucket = servers.empty_bucket() if backend == "s3" else None
    with Store.open(where, embedder=EMBEDDER, kv_store=bucket, lock_timeout=60) as opened:
        yield opened


@pytest.fixture
def ada(store: Store) -> ScopedMemories:
    return store.scope(ADA)
