"""Every example, as a process of its own, against a real server; and the commands of the deployment files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from agentmem.cli import app

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh"))
SHOWS = {
    "openai_client.py": r"Your dog is called Biscuit\.\n(.*\n)* *[\d.]+%  user: My dog is called Biscuit\.\n",
    "mcp_client.py": r"tools: remember, .*\nrecalled: The kettle is on the second shelf\.\nforgotten: True\n",
    "memories.sh": r"remembered: .*\nfound: .*the blue pot.*\nlisted: .*\nwould go: .*pruned.*\nforgotten: .*",
}


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """``agentmem serve`` at a free port; its address is in its log."""
    command = [sys.executable, "-m", "agentmem", "serve", "--port", "0", "--store", str(folder / "memory.db"), *options]
    log = folder / "log"
    with log.open("wb") as words:
        process = subprocess.Popen(command, stderr=words, stdout=words)
    deadline = time.monotonic() + 60
    try:
        while (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "it did not start in time"
            time.sleep(0.1)
        yield found[0]
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server with keys, and a key."""
    folder = tmp_path_factory.mktemp("examples")
    keys = str(folder / "keys.json")
    made = CliRunner().invoke(app, ["keys", "add", "examples", "--user", "ada", "--keys", keys])
    with serving(folder, "--keys", keys) as url:
        yield url, made.stdout.strip()


def test_every_example_is_run_here() -> None:
    assert set(EXAMPLES) == SHOWS.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_it_says(server: tuple[str, str], name: str) -> None:
    url, key = server
    command = ["bash" if name.endswith(".sh") else sys.executable, str(ROOT / "examples" / name)]
    env = {**os.environ, "AGENTMEM_URL": url, "AGENTMEM_KEY": key}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(SHOWS[name], done.stdout), done.stdout
    refused = subprocess.run(
        command, env={**env, "AGENTMEM_KEY": "none"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert refused.returncode != 0


def test_what_an_example_forgets_is_gone(server: tuple[str, str]) -> None:
    url, key = server
    found = httpx2.get(f"{url}/v1/memories", headers={"Authorization": f"Bearer {key}"}).json()["data"]
    assert not [memory for memory in found if "kettle" in memory["text"] or "spare key" in memory["text"]]


def commands() -> dict[str, list[str]]:
    unit = (ROOT / "deploy" / "agentmem.service").read_text(encoding="utf-8")
    image = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    (started,) = re.findall(r"^ExecStart=\S+/agentmem (.*)$", unit, re.MULTILINE)
    (given,) = re.findall(r"^CMD (\[.*\])$", image, re.MULTILINE)
    assert 'ENTRYPOINT ["agentmem"]' in image
    return {"agentmem.service": shlex.split(started), "Dockerfile": json.loads(given)}


@pytest.mark.parametrize("name", ["agentmem.service", "Dockerfile"])
def test_what_is_deployed_starts_with_keys_only(name: str, tmp_path: Path) -> None:
    """Their own options, with other places for the files."""
    given = [re.sub(r"^/(var/lib/agentmem|data)/", f"{tmp_path}/", word) for word in commands()[name]]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 1
    assert "no file of keys" in done.stderr


def test_the_image_has_what_its_build_copies() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    let_in = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in let_in
