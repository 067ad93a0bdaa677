"""``agentmem serve`` as a process of its own, for benchmarks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from benchmarks.processes import WorkerFailed

START_SECONDS = 120
END_SECONDS = 90


class Served:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url

    def stop(self) -> int:
        """SIGTERM; the exit code, once it has finished what it began."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(END_SECONDS)


@contextmanager
def serving(store: Path, *options: str, threads: int) -> Iterator[Served]:
    """A server over this store at a free port of this machine; killed at the end, if it still runs.

    Raises:
        WorkerFailed: it did not start.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "agentmem", "serve", "--store", str(store), "--port", str(port), *options]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AGENTMEM_")}
    log = store.with_suffix(".log")
    with log.open("ab") as words:
        process = subprocess.Popen(command, stdout=words, stderr=words, env={**env, "OMP_NUM_THREADS": str(threads)})
    served, deadline = Served(process, f"http://127.0.0.1:{port}"), time.monotonic() + START_SECONDS
    try:
        while not _answers(served.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise WorkerFailed(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield served
    finally:
        if process.poll() is None:
            served.kill()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").is_success
    except httpx2.TransportError:
        return False
