"""For all tests: no network, one thread, and an event loop for ``run_sync`` that is closed."""

import asyncio
import inspect
import os
from collections.abc import Iterator

import pytest

import no_network  # noqa: F401

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _loop_of_run_sync(request: pytest.FixtureRequest) -> Iterator[None]:
    if inspect.iscoroutinefunction(request.function):
        yield
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
