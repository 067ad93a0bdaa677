"""Run a recipe of docs/integrations.md: ``python docs/run_integrations.py FRAMEWORK PYTHON``.

PYTHON is that of an environment with the framework. The server runs in this one, as a process of its own; the recipe
runs in another, without network but this machine's and without a home. Exit code 1 if it prints anything else than the
page says.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "integrations.md"
ADDRESS = "http://127.0.0.1:8000"
"""Where the page has the server. Here it is at a free port."""
CUT = "import runpy, sys, no_network; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
START_SECONDS, RUN_SECONDS = 120, 300


def recipe(name: str) -> tuple[str, str]:
    """A framework's script, and what it prints."""
    section = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.M | re.S)
    blocks = dict(re.findall(r"^```(python|text)\n(.*?)^```", section[1] if section else "", re.M | re.S))
    if blocks.keys() != {"python", "text"}:
        raise SystemExit(f"docs/integrations.md has no recipe for {name!r}, or not what it prints")
    return blocks["python"], blocks["text"]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The server as a process, with a new store; its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "agentmem", "serve", "--store", str(folder / "memory.db"), "--port", str(port)]
    with subprocess.Popen(  # noqa: S603
        command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    urllib.request.urlopen(f"{url}/healthz", timeout=5).close()  # noqa: S310
                    break
                except urllib.error.URLError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit("the server did not start") from None
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def main(name: str, python: str) -> int:
    """Run a recipe; 0 if it prints what the page says."""
    script, shown = recipe(name)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as url:
        path = Path(folder) / "recipe.py"
        path.write_text(script.replace(ADDRESS, url), "utf-8")
        environment = {"PATH": os.environ["PATH"], "HOME": folder, "PYTHONPATH": str(ROOT / "adapters" / "contract")}
        command = [str(Path(python).absolute()), "-c", CUT, str(path)]
        done = subprocess.run(  # noqa: S603
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
    right = done.returncode == 0 and done.stdout == shown and "NetworkUsed" not in done.stderr
    print(f"{name}: {'as the page says' if right else f'prints {done.stdout!r}'}")
    if not right:
        print(done.stderr[-4000:], file=sys.stderr)
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
