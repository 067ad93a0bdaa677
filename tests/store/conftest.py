from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from store_world import ADA, EMBEDDER

from agentmem.store import ScopedMemories, Store

# "explain" traces every line that SQLAlchemy runs: minutes, to explain what the shrunken example shows anyway.
settings.register_profile("store", phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink], deadline=None)
settings.load_profile("store")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, embedder=EMBEDDER) as opened:
        yield opened


@pytest.fixture
def ada(store: Store) -> ScopedMemories:
    return store.scope(ADA)
