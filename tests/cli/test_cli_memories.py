"""``agentmem memories``: what is shown, what is changed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_world import ADA, TEXTS, Terminal, fill, invoke, only_line, process, rows

from agentmem.cli.output import short_id
from agentmem.errors import NotFound
from agentmem.records import Memory, Scope
from agentmem.store import NewMemory, Store

OnTerminal = Callable[..., Terminal]

pytestmark = pytest.mark.usefixtures("no_model")


@pytest.fixture
def ada(path: Path, stored: list[Memory]) -> list[str]:
    """Options that name the store and its user."""
    return ["--store", str(path), "--user", "ada"]


def texts(path: Path, scope: Scope = ADA) -> list[str]:
    with Store.open(path) as store:
        return [memory.text for memory in store.scope(scope).list(sort="created_at")]


# ------------------------------------------------------------------------------------------------------------- looking


def test_list_shows_the_newest_first(ada: list[str], stored: list[Memory]) -> None:
    result = invoke("memories", "list", *ada)
    assert result.exit_code == 0
    shown = rows(result.stdout)
    assert [line.split()[0] for line in shown] == [short_id(memory.id) for memory in reversed(stored)]
    assert TEXTS[0] in shown[-1]
    assert "4 of 4" in result.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--role", "assistant"], [1, 3]),
        (["--tag", "fact"], [0, 1]),
        (["--tier", "cold"], [2, 3]),
        (["--session", "second"], [2, 3]),
        (["--since", "2026-03-03"], [2, 3]),
        (["--until", "2026-03-03"], [0, 1]),
        (["--pinned"], []),
        (["--unpinned", "--limit", "1", "--offset", "1"], [1]),
        (["--min-uses", "1"], []),
    ],
)
def test_filters(ada: list[str], options: list[str], expected: list[int]) -> None:
    result = invoke("memories", "list", *ada, "--sort", "created_at", "--json", *options)
    assert [memory["text"] for memory in json.loads(result.stdout)] == [TEXTS[n] for n in expected]


def test_json_is_the_record_itself(ada: list[str], stored: list[Memory]) -> None:
    listed = json.loads(invoke("memories", "list", *ada, "--sort", "created_at", "--json").stdout)
    assert [Memory.model_validate(one) for one in listed] == stored


def test_text_of_others_is_shown_as_it_is_but_moves_no_cursor(ada: list[str], stored: list[Memory]) -> None:
    for shown in (invoke("memories", "list", *ada), invoke("memories", "show", stored[2].id, *ada)):
        assert "[bold]not markup[/bold] [red]" in shown.stdout
    for shown in (invoke("memories", "list", *ada), invoke("memories", "show", stored[3].id, *ada)):
        assert "cursor\N{REPLACEMENT CHARACTER}[2J" in shown.stdout
        assert "\x1b" not in shown.stdout
        assert "\x9b" not in shown.stdout


def test_show_tells_the_history(ada: list[str], stored: list[Memory]) -> None:
    result = invoke("memories", "show", short_id(stored[0].id), *ada)
    for part in (stored[0].id, TEXTS[0], "fact", "first", "warm", "added", "kv_attached"):
        assert part in result.stdout
    told = json.loads(invoke("memories", "show", stored[0].id, *ada, "--json").stdout)
    assert told["memory"]["id"] == stored[0].id
    assert [event["action"] for event in told["history"]] == ["added", "kv_attached"]


def test_an_unknown_id_and_one_of_another_user_get_the_same_answer(ada: list[str], stored: list[Memory]) -> None:
    theirs = invoke("memories", "show", stored[0].id, *ada[:2], "--user", "bob")
    unknown = invoke("memories", "show", "0" * 32 + "-0", *ada)
    assert theirs.exit_code == unknown.exit_code == 1
    assert "no memory" in only_line(unknown.stderr)
    assert "Biscuit" not in theirs.stdout + theirs.stderr


def test_an_ambiguous_short_id_is_refused(path: Path) -> None:
    twins = [f"{'cd' * 8}{n * 16}-0" for n in ("1", "2")]
    with Store.open(path) as store:
        store.scope(ADA).add([NewMemory(id=id, text=id, role="user", turn=id, n_tokens=1) for id in twins])  # type: ignore[arg-type]  # a role's name will do
    result = invoke("memories", "delete", short_id(twins[0]), "--yes", "--store", str(path), "--user", "ada")
    assert result.exit_code == 1
    assert all(id in result.stderr for id in twins)
    assert len(texts(path)) == 2


def test_a_user_without_memories_is_told_who_has_some(ada: list[str]) -> None:
    result = invoke("memories", "list", *ada[:2], "--json")
    assert json.loads(result.stdout) == []
    assert "--user ada" in result.stderr


def test_stats(ada: list[str], path: Path) -> None:
    fill(path, Scope(user="bob"), ["I am Bob."])
    mine = json.loads(invoke("memories", "stats", *ada, "--json").stdout)
    assert (mine["memories"], mine["warm"], mine["cold"]) == (4, 2, 2)
    assert json.loads(invoke("memories", "stats", *ada[:2], "--all-users", "--json").stdout)["memories"] == 5
    assert "2 warm, 2 cold" in invoke("memories", "stats", *ada).stdout


# ------------------------------------------------------------------------------------------------------------ changing


def test_pin_and_unpin(ada: list[str], stored: list[Memory]) -> None:
    ids = [short_id(stored[0].id), stored[1].id]
    assert "2 memories pinned" in invoke("memories", "pin", *ids, *ada).stderr
    pinned = json.loads(invoke("memories", "list", *ada, "--pinned", "--json").stdout)
    assert {memory["id"] for memory in pinned} == {stored[0].id, stored[1].id}
    unpinned = json.loads(invoke("memories", "unpin", stored[0].id, *ada, "--json").stdout)
    assert [(memory["id"], memory["pinned"]) for memory in unpinned] == [(stored[0].id, False)]


def test_delete_asks_nobody_who_is_not_there(ada: list[str], path: Path, stored: list[Memory]) -> None:
    result = invoke("memories", "delete", stored[0].id, *ada, stdin="y\n")
    assert result.exit_code == 1
    assert "--yes" in only_line(result.stderr)
    assert len(texts(path)) == 4


def test_delete_forgets_and_the_history_stays(ada: list[str], path: Path, stored: list[Memory]) -> None:
    result = invoke("memories", "delete", stored[0].id, stored[2].id, *ada, "--yes", "--json")
    assert json.loads(result.stdout) == {"deleted": [stored[0].id, stored[2].id], "complete": True}
    assert texts(path) == [TEXTS[1], TEXTS[3]]
    assert b"Biscuit" not in b"".join(file.read_bytes() for file in path.parent.glob("memory.db*") if file.is_file())
    told = json.loads(invoke("memories", "show", stored[0].id, *ada, "--json").stdout)
    assert told["memory"] is None
    assert told["history"][-1]["action"] == "deleted"


def test_delete_is_all_or_nothing(ada: list[str], path: Path, stored: list[Memory]) -> None:
    result = invoke("memories", "delete", stored[0].id, "unknown", *ada, "--yes")
    assert result.exit_code == 1
    assert len(texts(path)) == 4


@pytest.mark.parametrize(("key", "code", "left"), [("n", 1, 4), ("y", 0, 3)])
def test_delete_asks_on_a_terminal(
    ada: list[str], path: Path, stored: list[Memory], on_terminal: OnTerminal, key: str, code: int, left: int
) -> None:
    terminal = on_terminal("memories", "delete", stored[0].id, *ada)
    asked = terminal.wait_for("undone. [y/N]: ")
    assert TEXTS[0] in asked
    terminal.type(f"{key}\n")
    assert terminal.end() == code
    assert len(texts(path)) == left


def test_prune_only_says_what_would_go(ada: list[str], path: Path) -> None:
    result = invoke("memories", "prune", *ada, "--max-memories", "1")
    assert len([line for line in rows(result.stdout) if " delete " in line]) == 3
    assert "nothing was changed" in result.stderr
    assert len(texts(path)) == 4
    report = json.loads(invoke("memories", "prune", *ada, "--max-memories", "1", "--json").stdout)
    assert report["dry_run"] is True
    assert len(report["pruned"]) == 3


def test_prune_does_it_when_told_to(ada: list[str], path: Path) -> None:
    dropped = json.loads(invoke("memories", "prune", *ada, "--max-bytes", "0", "--apply", "--json").stdout)
    assert [one["action"] for one in dropped["pruned"]] == ["drop_kv", "drop_kv"]
    assert len(texts(path)) == 4
    invoke("memories", "prune", *ada, "--max-memories", "1", "--apply")
    assert texts(path) == [TEXTS[3]]


@pytest.mark.parametrize("options", [[], ["--max-bytes", "some"], ["--max-bytes", "-1"]])
def test_prune_without_a_usable_limit_is_a_usage_error(ada: list[str], path: Path, options: list[str]) -> None:
    assert invoke("memories", "prune", *ada, *options, "--apply").exit_code == 2
    assert len(texts(path)) == 4


# -------------------------------------------------------------------------------------------------------------- upkeep


def test_verify_finds_damage_and_repairs_it(ada: list[str], path: Path) -> None:
    assert invoke("memories", "verify", *ada[:2]).exit_code == 0
    with Store.open(path) as store, store.write() as connection:
        connection.exec_driver_sql("UPDATE kv_payload SET data = zeroblob(nbytes)")
    found = invoke("memories", "verify", *ada[:2])
    assert found.exit_code == 1
    assert "payload" in found.stdout
    assert "--repair" in found.stderr
    repaired = invoke("memories", "verify", *ada[:2], "--repair", "--json")
    assert (repaired.exit_code, json.loads(repaired.stdout)["ok"]) == (0, True)
    assert json.loads(invoke("memories", "verify", *ada[:2], "--json").stdout)["problems"] == []
    assert texts(path) == list(TEXTS)


def test_export_and_import(ada: list[str], tmp_path: Path, stored: list[Memory]) -> None:
    file, other = tmp_path / "ada.jsonl", tmp_path / "other.db"
    done = json.loads(invoke("memories", "export", str(file), *ada, "--json").stdout)
    assert done == {"exported": 4, "path": str(file)}
    for new in (4, 0):  # what is there already stays as it is
        result = invoke("memories", "import", str(file), "--store", str(other), "--user", "bob", "--json")
        assert json.loads(result.stdout)["imported"] == new
    assert texts(other, Scope(user="bob")) == list(TEXTS)
    assert texts(other) == []


def test_a_bad_export_changes_nothing(ada: list[str], path: Path, tmp_path: Path) -> None:
    file = tmp_path / "ada.jsonl"
    invoke("memories", "export", str(file), *ada)
    file.write_text(file.read_text(encoding="utf-8").replace("Oslo", "Oslo\\ud800"), encoding="utf-8")
    result = invoke("memories", "import", str(file), *ada[:2], "--user", "bob")
    assert result.exit_code == 1
    assert "line 3" in only_line(result.stderr)
    assert texts(path, Scope(user="bob")) == []


# --------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["list"], "list"),
        (["show", "{id}"], "dict"),
        (["pin", "{id}"], "list"),
        (["unpin", "{id}"], "list"),
        (["delete", "{id}", "--yes"], "dict"),
        (["prune", "--unused-for", "30d"], "dict"),
        (["stats"], "dict"),
        (["export", "{file}"], "dict"),
    ],
)
def test_json_is_all_that_stdout_gets(
    ada: list[str], stored: list[Memory], tmp_path: Path, command: list[str], what: str
) -> None:
    words = [word.format(id=stored[0].id, file=tmp_path / "out.jsonl") for word in command]
    result = invoke("memories", *words, *ada, "--json")
    assert result.exit_code == 0
    assert type(json.loads(result.stdout)).__name__ == what
    assert result.stdout.isascii()


@pytest.mark.parametrize(
    "command",
    [["list"], ["show", "x"], ["pin", "x"], ["delete", "x", "--yes"], ["stats"], ["verify"], ["export", "x"],
     ["prune", "--unused-for", "30d"], ["search", "x"]],
)  # fmt: skip
def test_a_missing_store_is_not_made(path: Path, command: list[str]) -> None:
    result = invoke("memories", *command, "--store", str(path))
    assert result.exit_code == 1
    assert f"no store at {path}" in only_line(result.stderr)
    assert result.stdout == ""
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--user", ""], "--user is empty"),
        (["--user", " ada"], "--user"),
        (["--session", "a\u200bb"], "--session"),
        (["--sort", "text; DROP TABLE memory"], "sort"),
        (["--limit", "-1"], "limit"),
    ],
)
def test_bad_input_is_one_clear_line(ada: list[str], path: Path, options: list[str], word: str) -> None:
    result = invoke("memories", "list", *ada, *options)
    assert result.exit_code == 1
    assert word in only_line(result.stderr)
    assert len(texts(path)) == 4


@pytest.mark.parametrize(
    "words", [["list", "--role", "boss"], ["list", "--since", "once"], ["pin"], ["nothing"], ["list", "--unknown"]]
)
def test_usage_errors_have_their_own_exit_code(ada: list[str], words: list[str]) -> None:
    assert invoke("memories", *words, *ada).exit_code == 2


def test_another_program_s_file_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a store at all")
    result = invoke("memories", "list", "--store", str(path))
    assert result.exit_code == 1
    assert "left alone" in only_line(result.stderr)
    assert path.read_bytes() == b"not a store at all"


def test_a_real_process_shows_no_traceback_unless_asked(ada: list[str], stored: list[Memory]) -> None:
    command = ("memories", "show", "unknown", *ada)
    told = process(*command)
    assert (told.returncode, told.stdout) == (1, b"")
    assert only_line(told.stderr.decode()).startswith("error: no memory")
    assert isinstance(invoke("--debug", *command).exception, NotFound)


def test_piped_output_has_no_escapes_and_survives_an_ascii_terminal(ada: list[str], path: Path) -> None:
    fill(path, Scope(user="eve"), ["Grüße aus Köln \N{DOG FACE}"])
    shown = process("memories", "list", "--store", str(path), "--user", "eve", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert shown.returncode == 0, shown.stderr
    assert b"\x1b" not in shown.stdout
    assert b"Gr??e aus K?ln ?" in shown.stdout


def test_settings_may_come_from_the_environment(path: Path, stored: list[Memory]) -> None:
    result = invoke("memories", "list", "--json", AGENTMEM_STORE=str(path), AGENTMEM_USER="ada")
    assert len(json.loads(result.stdout)) == 4
