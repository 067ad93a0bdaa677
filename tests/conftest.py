"""For all tests, and for the processes that they start."""

import os
from pathlib import Path

import pytest

# One thread: on a small machine, several test processes with PyTorch's own threads wait for each other's barriers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The width of what commands print is looked up once, when a test first imports them, whichever that is.
os.environ["COLUMNS"] = "120"


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that says the same word for a very long time: its last layer answers with one token only."""
    from babbler import make_babbler  # here, so that tests which need no model start without one

    return make_babbler(tmp_path_factory.mktemp("babbler"))
