"""``agentmem chat``: one message or a dialogue; what is shown; Ctrl-C and Ctrl-D."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_world import Terminal, invoke, only_line, process

from agentmem.records import Memory, Reply, Scope
from agentmem.store import Store

OnTerminal = Callable[..., Terminal]


def remembered(path: Path, user: str = "me", session: str | None = None) -> list[Memory]:
    with Store.open(path) as store:
        return store.scope(Scope(user=user, session=session)).list(sort="created_at")


# --------------------------------------------------------------------------------------------------------- one message


def test_a_message_is_remembered_by_the_next_process(path: Path) -> None:
    told = process("chat", "--store", str(path), "--user", "ada", stdin=b"My dog is called Biscuit.\n")
    assert told.returncode == 0, told.stderr
    asked = process("chat", "What is my dog called?", "--store", str(path), "--user", "ada")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == b"Your dog is called Biscuit.\n"  # the answer and nothing else
    line = only_line(asked.stderr.decode())
    assert line.startswith("read ")
    assert "Biscuit. " in line
    assert "%" in line


def test_json_is_the_whole_reply(path: Path) -> None:
    invoke("chat", "I live in Oslo.", "--store", str(path))
    result = invoke("chat", "Where do I live?", "--store", str(path), "--json")
    reply = Reply.model_validate_json(result.stdout)
    assert "Oslo" in reply.text
    assert "I live in Oslo." in [read.memory.text for read in reply.memories]
    assert json.loads(result.stdout)["finish_reason"] == "stop"


def test_options_reach_the_conversation(path: Path) -> None:
    invoke("chat", "My dog is called Biscuit.", "--store", str(path), "--user", "ada", "--session", "first")
    assert remembered(path, "ada", "first")[0].text == "My dog is called Biscuit."
    options = ["--store", str(path), "--user", "ada", "--json"]
    off = Reply.model_validate_json(invoke("chat", "What is my dog called?", *options, "--top-k", "0").stdout)
    assert off.memories == ()
    assert "Biscuit" not in off.text
    short = Reply.model_validate_json(invoke("chat", "Hello!", *options, "--max-new-tokens", "1").stdout)
    assert (short.usage.completion_tokens, short.finish_reason) == (1, "length")
    told = Reply.model_validate_json(invoke("chat", "Hello!", *options, "--system", "You are a pirate.").stdout)
    assert told.usage.prompt_tokens > short.usage.prompt_tokens


@pytest.mark.parametrize("stdin", [b"", b" \n", b"\xff\xfe", b"a\x00b"])
def test_stdin_that_is_no_message_is_refused_and_nothing_is_stored(path: Path, stdin: bytes) -> None:
    result = invoke("chat", "--store", str(path), stdin=stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert only_line(result.stderr).startswith("error: ")
    assert not path.exists()


def test_markup_and_control_characters_in_a_message_are_harmless(path: Path) -> None:
    result = invoke("chat", "[red]My dog is called [/b]\x1b[2J", "--store", str(path))
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout + result.stderr
    assert remembered(path)[0].text == "[red]My dog is called [/b]\x1b[2J"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--model", "{folder}/nothing"], "does not exist"),
        (["--store", "{folder}"], "directory"),
        (["--top-k", "-1"], "top_k"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--temperature", "-1"], "temperature"),
        (["--user", ""], "user"),
    ],
)
def test_bad_options_are_one_clear_line(path: Path, options: list[str], word: str) -> None:
    words = [option.format(folder=path.parent) for option in options]
    result = invoke("chat", "Hello!", "--store", str(path), *words)
    assert result.exit_code == 1
    assert word in only_line(result.stderr)
    assert result.stdout == ""


# ------------------------------------------------------------------------------------------------------------- dialogue


def test_a_dialogue_on_a_terminal(path: Path, on_terminal: OnTerminal) -> None:
    terminal = on_terminal("chat", "--store", str(path))
    terminal.wait_for("you> ")
    terminal.type("My dog is called Biscuit.\n")
    terminal.wait_for("you> ")
    terminal.type("What is my dog called?\n")
    answered = terminal.wait_for("you> ")
    assert "read " not in answered  # what the window shows is not read as memory
    terminal.type("/memories\n")
    listed = terminal.wait_for("4 of 4 memories")
    assert "My dog is called Biscuit." in listed
    terminal.type("/nonsense\n")
    terminal.wait_for("there is no /nonsense")
    terminal.wait_for("you> ")
    terminal.type("\n")  # an empty line says nothing
    terminal.wait_for("you> ")
    terminal.press("\x03", "Ctrl-D or /quit")  # Ctrl-C at the prompt
    terminal.wait_for("you> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    said = remembered(path)
    assert [memory.text for memory in said][::2] == ["My dog is called Biscuit.", "What is my dog called?"]
    assert said[3].text in answered
    assert all(memory.kv_bytes for memory in said)  # nothing was left behind when it ended


def test_an_error_ends_the_turn_and_quit_the_dialogue(path: Path, on_terminal: OnTerminal) -> None:
    terminal = on_terminal("chat", "--store", str(path), "--temperature", "-1")
    terminal.wait_for("you> ")
    terminal.type("Hello!\n")
    terminal.wait_for("error: ")
    terminal.wait_for("you> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0


def test_ctrl_c_ends_the_answer_and_not_the_program(path: Path, babbler: Path, on_terminal: OnTerminal) -> None:
    options = ["--model", str(babbler), "--store", str(path), "--max-new-tokens", "30000"]
    terminal = on_terminal("chat", *options)
    terminal.wait_for("you> ")
    terminal.type("Talk!\n")
    terminal.wait_for("the the the")
    terminal.type("\x03")
    terminal.wait_for("stopped", 30)
    terminal.wait_for("you> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    said = remembered(path)
    assert said[0].text == "Talk!"
    assert said[1].text.startswith("the the the")
    assert sum(memory.n_tokens for memory in said) < 20000


def test_ctrl_c_ends_a_single_message_with_the_shell_s_exit_code(
    path: Path, babbler: Path, on_terminal: OnTerminal
) -> None:
    options = ["--model", str(babbler), "--store", str(path), "--max-new-tokens", "30000"]
    terminal = on_terminal("chat", "Talk!", *options)
    terminal.wait_for("the the the")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert remembered(path)[0].text == "Talk!"


def test_json_needs_a_message(path: Path, on_terminal: OnTerminal) -> None:
    terminal = on_terminal("chat", "--json", "--store", str(path))
    terminal.wait_for("--json needs a message")
    assert terminal.end() == 2
    assert not path.exists()


def test_a_session_of_another_recipe_goes_on_in_another_process(path: Path) -> None:
    options = ["--store", str(path), "--session", "monday", "--recipe", "infllm", "--json"]
    told = process("chat", "My dog is called Biscuit.", *options)
    assert told.returncode == 0, told.stderr.decode()
    asked = process("chat", "What is my dog called?", *options)
    assert json.loads(asked.stdout)["text"] == "Your dog is called Biscuit."
    assert json.loads(asked.stdout)["notes"] == []


@pytest.mark.parametrize(
    ("recipe", "why"), [("infllm:n_local=2000", "1024"), ("imaginary", "unknown recipe"), ("infllm:n=1", "n_local")]
)
def test_a_recipe_that_cannot_be_is_refused(path: Path, recipe: str, why: str) -> None:
    refused = invoke("chat", "Hello!", "--store", str(path), "--recipe", recipe)
    assert refused.exit_code == 1
    assert why in only_line(refused.stderr)
    assert isinstance(refused.exception, SystemExit)  # and no traceback
