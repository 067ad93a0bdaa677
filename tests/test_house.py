"""The house rules that a machine can check: floors of imports, public names, sizes, what is never written down."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import agentmem
from agentmem import errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "agentmem"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

FLOORS = {
    **dict.fromkeys(["__main__", "cli", "compat", "evaluation", "server"], 4),
    **dict.fromkeys(["__init__", "llm", "conversation", "memories", "reader", "reads", "streaming", "training"], 3),
    **dict.fromkeys(["dialogue", "prefixes", "recognising", "turns", "writer", "window"], 3),
    **dict.fromkeys(["arriving", "asynchronous", "ingest", "packing", "rebuild"], 3),
    **dict.fromkeys(["recipes", "retrieval", "store", "chunking", "tools"], 2),
    **dict.fromkeys(["model"], 1),
    **dict.fromkeys(["records", "errors", "text"], 0),
}
"""A room imports from the floors below its own. On some floors the rooms also know their neighbours."""
NEIGHBOURLY = {0, 3, 4}
APART = {("store", "model"), ("store", "training"), ("recipes", "training"), ("retrieval", "training")}
"""(importer, imported): rooms that do not know each other although one is below the other."""
FOREIGN = {
    "store": {"transformers", "tokenizers"},
    "model": {"sqlalchemy", "alembic", "pysqlite3", "sqlite3", "sqlite_vec"},
    "records": {"torch", "transformers", "sqlalchemy"},
    "errors": {"torch", "transformers", "sqlalchemy"},
}
"""Packages that a room must not import."""
CORE = {
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "sqlalchemy",
    "alembic",
    "sqlite-vec",
    "pysqlite3",
    "tenacity",
    "pydantic",
    "typer",
    "rich",
}
"""All that installing the package may ask for. A new dependency has to earn its place here."""
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS_CODE = {"torch.load", "torch.save", "np.load", "numpy.load", "eval", "exec"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, str]]:
    """("file:line", full name) of everything a file imports, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            found += [(where, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}: write the import in full"
            found += [(where, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def tracked() -> list[Path]:
    """Files of the project: all that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8").lower()
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


# ------------------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    for where, name in imports(path):
        top, *rest = name.split(".")
        if top != "agentmem":
            assert top not in FOREIGN.get(here, set()), f"{where}: {here} does not know {top}"
            continue
        there = rest[0] if rest and rest[0] in FLOORS else "__init__"
        below = FLOORS[there] < FLOORS[here]
        neighbour = FLOORS[there] == FLOORS[here] and FLOORS[here] in NEIGHBOURLY
        assert here == there or below or neighbour, f"{where}: {here} is not above {there}"
        assert (here, there) not in APART, f"{where}: {here} does not know {there}"


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in SOURCES} <= FLOORS.keys()


def test_every_module_imports() -> None:
    for path in SOURCES:
        if "migrations" not in path.parts and path.name != "__main__.py":  # those two run when they are imported
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            importlib.import_module(name.removesuffix(".__init__"))


# --------------------------------------------------------------------------------------------------------- public names


def test_public_names_are_sorted_and_true() -> None:
    reached = {name: getattr(agentmem, name) for name in agentmem.__all__}  # resolves the late ones too
    named = {n: v for n, v in vars(agentmem).items() if not n.startswith("_")}
    own = {n: v for n, v in named.items() if inspect.isclass(v) or inspect.isfunction(v)}
    public = {n: v for n, v in own.items() if v.__module__.startswith("agentmem")}
    assert agentmem.__all__ == sorted(agentmem.__all__)
    assert reached == public
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        agentmem.nothing  # noqa: B018


def test_a_command_without_a_model_does_not_import_torch() -> None:
    script = "import sys, agentmem.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", agentmem.__all__)
def test_public_names_and_their_methods_are_documented(name: str) -> None:
    value = getattr(agentmem, name)
    assert (value.__doc__ or "").strip(), f"{name} has no docstring"
    for method, function in vars(value).items():
        if inspect.isfunction(function) and not method.startswith("_"):
            assert (function.__doc__ or "").strip(), f"{name}.{method} has no docstring"


def test_the_error_tree_is_drawn_as_it_is() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for match in re.finditer(r"^ {4}([│ ├└─]*)(\w+)", errors.__doc__ or "", re.MULTILINE):
        depth = len(match[1]) // 4
        above[depth:] = [match[2]]
        if depth:
            drawn[match[2]] = above[depth - 1]
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and c.__module__ == errors.__name__]
    assert drawn == {c.__name__: c.__bases__[0].__name__ for c in classes if c is not errors.AgentMemError}
    for c in classes:
        assert issubclass(c, errors.AgentMemError)
        assert getattr(agentmem, c.__name__, None) is c, f"{c.__name__} is not exported"


def test_every_error_is_explained_in_the_documentation() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    names = [c.__name__ for c in vars(errors).values() if inspect.isclass(c)]
    assert [name for name in names if f"`{name}`" not in text] == []


# ------------------------------------------------------------------------------------------------- what is written down


def test_no_file_is_longer_than_500_lines() -> None:
    own = [p for p in tracked() if p.suffix in (".py", ".js", ".css") and not {"vendor", "axe"} & set(p.parts)]
    lengths = {str(p.relative_to(ROOT)): p.read_bytes().count(b"\n") for p in own}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}


def test_the_page_makes_html_of_nothing_but_its_templates() -> None:
    scripts = [p for p in tracked() if p.suffix == ".js" and PACKAGE in p.parents and "vendor" not in p.parts]
    assert len(scripts) > 10
    pattern = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|unsafeHTML|\beval\(|new Function")
    assert [(p.name, found[0]) for p in scripts if (found := pattern.search(p.read_text(encoding="utf-8")))] == []
    for script in scripts:
        assert script.read_text(encoding="utf-8").startswith("/** "), f"{script.name} does not say what it is"


def test_nothing_names_a_machine_or_a_registry() -> None:
    folders = ("work", "farm", "tmp/am", "opt/pypi", "opt/wheels", "home", "root")
    hosts = (("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"))
    options = (("index", "url"), ("trusted", "host"), ("find", "links"))
    pattern = re.compile(
        "|".join(
            [
                *(rf"(?<![\w.]){re.escape('/' + folder)}/" for folder in folders),
                *(re.escape(".".join(host)) for host in hosts),
                *("-".join(option) for option in options),
            ]
        )
    )
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:  # a text file
            for number, line in enumerate(data.decode("utf-8").splitlines(), 1):
                found += [f"{path.relative_to(ROOT)}:{number}: {match[0]}" for match in pattern.finditer(line)]
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_loading_runs_no_code(path: Path) -> None:
    assert [name for _, name in imports(path) if name.partition(".")[0] in PICKLING] == []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in RUNS_CODE, f"line {node.lineno}: {ast.unparse(node.func)}"
            trusting = [k for k in node.keywords if k.arg in {"trust_remote_code", "allow_pickle"}]
            assert all(ast.unparse(k.value) == "False" for k in trusting), f"line {node.lineno}"


# ------------------------------------------------------------------------------------------------------------ packaging


def test_core_dependencies_are_no_more_than_these() -> None:
    assert {distribution(requirement) for requirement in PROJECT["dependencies"]} <= CORE


def test_every_direct_dependency_is_pinned() -> None:
    direct = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert {distribution(requirement) for requirement in direct} <= pins("constraints.txt").keys()


def test_the_oldest_tested_transformers_is_the_lowest_allowed() -> None:
    (requirement,) = (r for r in PROJECT["dependencies"] if distribution(r) == "transformers")
    oldest = pins("constraints-oldest.txt")["transformers"]
    assert f">={oldest.removesuffix('.0')}," in requirement


def test_the_package_carries_the_inspector() -> None:
    folder = PACKAGE / "server" / "inspector"
    assert {p for p in folder.rglob("*") if p.is_file()} <= set(tracked())  # what git ignores, the wheel leaves out


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "tokenizer.json"])
def test_the_package_carries_the_bundled_model(part: str) -> None:
    assert PACKAGE / "model" / "bundled" / part in tracked()


def test_the_package_says_that_it_is_typed() -> None:
    assert PACKAGE / "py.typed" in tracked()


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_exist(target: str) -> None:
    make = shutil.which("make")
    assert make is not None, "make is needed"
    outcome = subprocess.run([make, "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
