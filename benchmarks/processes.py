"""Workers: each a fresh interpreter that prints one JSON object a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class WorkerFailed(RuntimeError):
    """A worker ended with an error; its last words are in the message."""


def lines_of(module: str, *arguments: str, threads: int) -> Iterator[dict[str, Any]]:
    """Run ``python -m module arguments`` and yield what it prints, as it prints it.

    Raises:
        WorkerFailed: it ended with another exit code than 0, or printed something that is not JSON.
    """
    count = str(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as words:
        worker = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
        )
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise WorkerFailed(f"{module} printed a line that is not JSON: {line[:200]!r}") from error
            if code := worker.wait():
                words.seek(0)
                raise WorkerFailed(
                    f"{module} {' '.join(arguments)} ended with exit code {code}:\n{words.read()[-2000:]}"
                )
        finally:  # also when the reader gives up: no worker is left behind
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            worker.stdout.close()


def emit(record: dict[str, Any]) -> None:
    """Print one line for ``lines_of``."""
    print(json.dumps(record), flush=True)


def memory_mark() -> int:
    """Let the high-water mark of this process's memory (VmHWM) begin anew. Returns the bytes held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(line: str) -> int:
    """A memory figure of this process, in bytes, as Linux reports it."""
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(f"{line}:"):
            return int(entry.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {line}; peak memory is measured on Linux only")
