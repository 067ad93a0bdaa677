"""What every adapter's folder has to be. Its own tests run in an environment of its own: `make test-adapters`."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import agentmem
from agentmem import store

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = ROOT / "adapters"
FOLDERS = sorted(path.parent for path in ADAPTERS.glob("*/pyproject.toml"))
PUBLIC = {"agentmem": set(agentmem.__all__), "agentmem.store": set(store.__all__), "agentmem.tools": {"call_text"}}


def sources(folder: Path) -> list[Path]:
    return sorted((folder / "src").rglob("*.py"))


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    words: set[int] = set()
    for node in ast.walk(tree):
        for child in getattr(node, "body", ()) if isinstance(node, documented) else ():
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                words.update(range(child.lineno, (child.end_lineno or 0) + 1))
    lines = enumerate(path.read_text("utf-8").splitlines(), 1)
    return sum(1 for n, line in lines if n not in words and line.strip() and not line.strip().startswith("#"))


def test_the_table_and_the_makefile_name_every_adapter() -> None:
    names = [folder.name for folder in FOLDERS]
    assert re.findall(r"^\| \[`([\w-]+)`\]", (ADAPTERS / "README.md").read_text("utf-8"), re.M) == names
    (listed,) = re.findall(r"^ADAPTERS := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert listed.split() == names


def test_the_folder_of_adapters_is_no_package() -> None:
    assert [str(path) for path in (ADAPTERS / "__init__.py", *ADAPTERS.glob("*/__init__.py")) if path.exists()] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_adapter_is_whole(folder: Path) -> None:
    for part in ("README.md", "examples/bot.py", "tests/conftest.py", "tests/test_stories.py"):
        assert (folder / part).is_file(), part
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = project["dependencies"]
    assert any(re.match(r"agentmem-kv(\[\w+\])?>=", one) for one in requirements)
    assert [one for one in requirements if ">=" not in one or "<" not in one] == [], "bounds at both ends"
    oldest = re.findall(r"^([\w-]+)==([\d.]+)$", (folder / "constraints-oldest.txt").read_text("utf-8"), re.M)
    for bound in requirements:
        name, least = re.match(r"([\w-]+)\S*?>=([\d.]+)", bound).groups()  # type: ignore[union-attr]
        assert name == "agentmem-kv" or dict(oldest)[name].startswith(least)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_adapter_only_translates(folder: Path) -> None:
    for path in sources(folder):
        assert code_lines(path) <= 150, path.name
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "agentmem":
                assert {alias.name for alias in node.names} <= PUBLIC[node.module or ""], path.name
