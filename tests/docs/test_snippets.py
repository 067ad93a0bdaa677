"""Every snippet of README.md, CONTRIBUTING.md and docs/*.md is run, in order, as a reader would.

The blocks of one file share a folder, and its Python blocks a namespace. A ``text`` block that follows a block at once
is what that block prints, to the character. ``<!-- hub: ID -->`` above a block names a model of the hub, which is no
part of this project: the bundled one takes its place.
"""

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {"integrations.md"}
"""Its blocks run in environments of other frameworks: ``make test-integrations``."""
BLOCK = re.compile(
    r"(?:^<!-- hub: (?P<hub>\S+) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$(?P<gap>\n*)",
    re.MULTILINE | re.DOTALL,
)
SHELL = {"console", "bash"}
SHOWN = {"text"}
"""Output and drawings."""
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block; ``shows`` is the output that the page claims for it."""

    line: int
    language: str
    body: str
    hub: str | None
    shows: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    assert text.count("\n```") + text.startswith("```") == 2 * len(found), f"{page.name} has a fence that is not closed"
    made = []
    for at, match in enumerate(found):
        following = found[at + 1] if at + 1 < len(found) else None
        claims = following is not None and following.start() == match.end() and following["language"] == "text"
        shows = following["body"] if following is not None and claims else None
        line = text[: match.start("body")].count("\n")
        made.append(Block(line, match["language"], match["body"], match["hub"], shows))
    return made


def run_python(code: str, name: str, namespace: dict[str, Any]) -> str:
    """Run the code (top-level ``await`` included); return what it printed."""
    compiled = compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(compiled, CodeType)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        outcome = eval(compiled, namespace)
        if inspect.isawaitable(outcome):
            asyncio.run(_finish(outcome))
    return printed.getvalue()


async def _finish(outcome: Any) -> None:
    await outcome


def command_lines(body: str, language: str) -> Iterator[str]:
    """The commands of a shell block; in a ``console`` block they follow a ``$``, and the rest is output."""
    for line in body.replace("\\\n", " ").splitlines():
        if language == "console":
            if line.startswith("$ "):
                yield line[2:]
        elif line.strip() and not line.startswith("#"):
            yield line


def run_shell(line: str) -> str:
    """Run one line with the ``agentmem`` and ``python`` of this environment; ``make`` targets need only exist."""
    words = line.split()
    if words[0] == "make":
        targets = {word for word in words[1:] if "=" not in word}
        assert targets <= set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8"))), (
            f"no such target: {line}"
        )
        return ""
    assert words[0] in {"agentmem", "python"}, f"the documentation runs {words[0]!r}, which this test cannot: {line}"
    module = {"agentmem": f'"{sys.executable}" -m agentmem', "python": f'"{sys.executable}"'}[words[0]]
    outcome = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", module + line.removeprefix(words[0])],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )
    assert outcome.returncode == 0, f"{line}\n{outcome.stdout}{outcome.stderr}"
    return outcome.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ELSEWHERE], ids=lambda page: page.name)
def test_snippets(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        body = block.body if block.hub is None else block.body.replace(block.hub, "bundled")
        assert block.hub is None or body != block.body, f"{page.name}:{block.line}: {block.hub} is not in the block"
        if block.language == "python":
            printed = run_python("\n" * block.line + body, str(page), namespace)
        elif block.language in SHELL:
            printed = "".join([run_shell(line) for line in command_lines(body, block.language)])
        else:
            assert block.language in SHOWN, f"{page.name}:{block.line}: a block of unknown language {block.language!r}"
            continue
        assert block.shows is None or printed == block.shows, f"{page.name}:{block.line} prints:\n{printed}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                name, _, anchor = target.partition("#")
                file = page.parent / name if name else page
                there = file.exists() and (not anchor or anchor in anchors(file))
                assert there, f"{page.name} links to {target}, which does not exist"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_snippet_that_prints_something_else_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n```text\n3\n```\n", encoding="utf-8")
    block, _ = blocks(page)
    assert block.shows == "3\n"
    assert run_python(block.body, str(page), {}) == "2\n"
