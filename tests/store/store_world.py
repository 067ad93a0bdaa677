"""What the store's tests share: an embedder of 16 dimensions whose vectors are made of words."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from agentmem.records import Memory, Role, Scope
from agentmem.store import EmbedderId, NewMemory, ScopedMemories, text_digest

DIM = 16
EMBEDDER = EmbedderId("words", DIM, noise=1 / DIM**0.5)  # cosines of unrelated texts deviate by that
Where = Path | str
"""A file, or the address of a PostgreSQL database."""

ADA = Scope(user="ada")
BOB = Scope(user="bob")


def embed(text: str) -> np.ndarray:
    """A unit vector that depends on the text only: texts with the same words are near each other."""
    total = np.zeros(DIM)
    for word in text.lower().split() or [""]:
        seed = int.from_bytes(hashlib.sha256(word.strip(".,?!").encode()).digest()[:8], "little")
        total += np.random.default_rng(seed).standard_normal(DIM)
    return (total / np.linalg.norm(total)).astype(np.float32)


def new(text: str, turn: str | None = None, **more: object) -> NewMemory:
    """A memory of a turn of its own, unless told otherwise."""
    fields = {"role": Role.USER, "n_tokens": len(text.split()), "embedding": embed(text)} | more
    return NewMemory(text=text, turn=turn or f"turn of {hashlib.sha256(text.encode()).hexdigest()[:16]}", **fields)


def attach(handle: ScopedMemories, memory: Memory, payload: bytes, fingerprint: str = "model-a") -> bool:
    digest = text_digest(memory.text)
    return handle.attach_kv(memory.id, payload, fingerprint=fingerprint, codec="int8", text_sha256=digest)


def files_of(path: Path) -> Iterable[Path]:
    """Every file that belongs to the store at ``path``."""
    yield from (p for p in path.parent.glob(f"{path.name}*") if p.is_file())
    yield from (p for p in Path(f"{path}.kv").rglob("*") if p.is_file())


def found_in_files(path: Path, *needles: bytes) -> list[tuple[str, bytes]]:
    """Which of these bytes stand anywhere in the store's files."""
    found = []
    for file in files_of(path):
        content = file.read_bytes()
        found += [(file.name, needle) for needle in needles if needle in content]
    return found


def python(script: str, *arguments: object, **more: object) -> subprocess.Popen[str]:
    """A real process that runs a script with these tests' helpers in reach."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    options: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **(options | more))


def finish(process: subprocess.Popen[str]) -> str:
    """Its output; the test fails when the process failed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out
