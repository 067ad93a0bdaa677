"""``make conformance``: the official MCP conformance tool against ``agentmem serve`` and ``agentmem mcp --http``.

No test, because it has to be fetched with npm. Most of its scenarios call tools of its own; these do not.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCENARIOS = (
    "server-initialize",
    "ping",
    "tools-list",
    "tools-call-error",
    "resources-list",
    "prompts-list",
    "dns-rebinding-protection",
)
WITH_SESSIONS = "server-sse-multiple-streams"
"""``/mcp`` of the server has none."""


@contextmanager
def running(*command: str) -> Iterator[str]:
    """A server at a free port; its address."""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        with log.open("wb") as words:
            options = ["--port", "0", "--store", f"{name}/memory.db"]
            process = subprocess.Popen(
                [sys.executable, "-m", "agentmem", *command, *options], stdout=words, stderr=words
            )
        try:
            while (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield f"{found[0]}/mcp"
        finally:
            process.terminate()
            process.wait(60)


def main(tool: Path) -> int:
    """Run all scenarios; the number of those that failed."""
    modules = tool / "node_modules"
    node, script = modules / ".bin" / "node", modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    failed = 0
    for command, scenarios in ((("serve",), SCENARIOS), (("mcp", "--http"), (*SCENARIOS, WITH_SESSIONS))):
        with running(*command) as url:
            for scenario in scenarios:
                arguments = [str(node), str(script), "server", "--url", url, "--scenario", scenario]
                done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
                passed = re.search(r"Passed: (\d+)/\1, 0 failed, 0 warnings", done.stdout)
                good = done.returncode == 0 and passed is not None and passed[1] != "0"
                print(f"{' '.join(command)}: {scenario}: {'passed' if good else done.stdout[-500:]}")
                failed += not good
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
