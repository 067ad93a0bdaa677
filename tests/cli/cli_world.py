"""A store written without any model, and ways to run the command: in this process, as a process, on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
from typer.testing import CliRunner, Result

from agentmem.cli import app
from agentmem.records import Memory, Role, Scope
from agentmem.store import NewKV, NewMemory, Store, text_digest
from agentmem.store.codec import pack

ADA = Scope(user="ada")
TEXTS = ("My dog is called Biscuit.", "I live in Oslo.", "[bold]not markup[/bold] [red]", "cursor\x1b[2J\x9bgone")
DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Makes stdin the terminal that Ctrl-C comes from, then becomes the command. A shell in which the tests run in the
# background has SIGINT ignored, and a terminal's own shell would not.
_ON_A_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def invoke(*args: str, stdin: str | bytes | None = None, **env: str) -> Result:
    """Run the command in this process. Its exceptions are its result, as a shell would see them."""
    return CliRunner().invoke(app, list(args), input=stdin, env={"COLUMNS": "120", **env})


def process(*args: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command as a process of its own."""
    command = [sys.executable, "-m", "agentmem", *args]
    return subprocess.run(
        command, input=stdin, capture_output=True, env={**os.environ, **env}, timeout=120, check=False
    )


def fill(path: Path, scope: Scope = ADA, texts: Sequence[str] = TEXTS) -> list[Memory]:
    """Store texts a day apart: ids as a conversation makes them; the first two with KV."""
    new = [
        NewMemory(
            id=f"{number:08x}{'ab' * 12}-0",
            text=text,
            role=Role.USER if number % 2 == 0 else Role.ASSISTANT,
            turn=f"{number:08x}{'ab' * 12}",
            session="first" if number < 2 else "second",
            n_tokens=5,
            created_at=DAY + timedelta(days=number),
            tags=("fact",) if number < 2 else (),
        )
        for number, text in enumerate(texts)
    ]
    tensors = [torch.ones(2, 5, 8)] * 2
    with Store.open(path) as store:
        memories = store.scope(scope)
        memories.add(new)
        kv = [
            NewKV(id=m.id or "", payload=pack(tensors, tensors, "bf16"), codec="bf16", text_sha256=text_digest(m.text))
            for m in new[:2]
        ]
        memories.attach_kv_many(kv, fingerprint="model")
        return memories.list(sort="created_at")


class Terminal:
    """The command on a pseudo-terminal of its own, typed at and read like a person would."""

    def __init__(self, *args: str, cwd: Path):
        self.screen = ""
        env = {**os.environ, "TERM": "dumb", "COLUMNS": "120", "NO_COLOR": "1"}
        self._terminal, theirs = pty.openpty()
        command = [sys.executable, "-c", _ON_A_TERMINAL, "-m", "agentmem", *args]
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=env, start_new_session=True
        )
        os.close(theirs)

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def press(self, key: str, text: str) -> str:
        """Press a key until ``text`` appears: between its prompt and its read, a program is deaf to signals."""
        for _ in range(30):
            self.type(key)
            until = time.monotonic() + 1.0
            while time.monotonic() < until and text not in self.screen:
                self._read(0.1)
            if text in self.screen:
                break
        return self.wait_for(text)

    def wait_for(self, text: str, seconds: float = 60.0) -> str:
        """Read until ``text`` appears after what was already waited for; what was shown up to its end."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} did not appear, but {self.screen!r}"
            assert self._read(1.0), f"it ended without {text!r}: {self.screen!r}"
        end = self.screen.index(text) + len(text)
        shown, self.screen = self.screen[:end], self.screen[end:]
        return shown

    def end(self) -> int:
        """Read until the process ends; its exit code."""
        while self._read(60.0):
            pass
        os.close(self._terminal)
        return self._process.wait(60)

    def close(self) -> None:
        """Stop the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(60)
            os.close(self._terminal)

    def _read(self, seconds: float) -> bool:
        """Read what there is within so many seconds. False when the other side is closed."""
        if not select.select([self._terminal], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # Linux answers EIO when the process has closed the terminal
            return False
        self.screen = _ESCAPE.sub("", self.screen + data.decode(errors="replace"))
        return bool(data)


def rows(output: str) -> list[str]:
    """Lines of a table below its header."""
    return output.strip().splitlines()[1:]


def only_line(text: str) -> str:
    """The one line of a text."""
    (line,) = text.strip().splitlines()
    return line
