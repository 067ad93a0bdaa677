"""``agentmem chat``: a dialogue with memory, interactive or a single message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from agentmem.cli import options as opt
from agentmem.cli.interrupt import catching_interrupt
from agentmem.cli.opening import open_llm
from agentmem.cli.output import err, memory_table, note, one_line, out, percent, plain, print_json
from agentmem.errors import AgentMemError, InvalidInput
from agentmem.records import Reply
from agentmem.text import check_text

if TYPE_CHECKING:
    from agentmem.conversation import Conversation

if find_spec("readline"):  # line editing and history at the prompt, where the platform has it
    import readline  # noqa: F401

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""
_SHOWN_READS = 3
"""Memories named in the line below an answer."""

Answer = Callable[[str], tuple[Reply, bool]]
"""Says a message; the reply, and whether Ctrl-C ended it."""


def chat(
    message: Annotated[
        str | None, typer.Argument(metavar="MESSAGE", help="Say this and exit. Without it: stdin, or a dialogue.")
    ] = None,
    model: opt.Model = None,
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: Annotated[
        str | None, typer.Option("--session", help="Name of this dialogue.", show_default="a new one")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME[:FIELD=VALUE,...]", help="How memory is written and read.")
    ] = "parallel",
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", help="Memories read at once; 0 turns memory off.", show_default="the recipe's"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="0 always takes the likeliest token.")] = 0.0,
    json: opt.Json = False,
) -> None:
    """Talk to the model. It remembers what was said, also in earlier dialogues.

    In a dialogue: /memories lists what is remembered, /quit or Ctrl-D ends it, Ctrl-C ends the answer.
    """
    if message is None and not sys.stdin.isatty():
        message = _read_stdin()
    if message is None and json:
        raise typer.BadParameter("--json needs a message, as an argument or on stdin")
    if message is not None:
        check_text(message, "the message")  # before a model is loaded and a store is made for it
    from agentmem.recipes.spec import parse_recipe  # torch takes seconds: not before the message was checked

    with open_llm(store, model, recipe=parse_recipe(recipe), top_k=top_k, max_new_tokens=max_new_tokens) as llm:
        conversation = llm.conversation(user=user, agent=agent, session=session, system=system)

        def answer(said: str) -> tuple[Reply, bool]:
            return _answer(conversation, said, temperature, show=not json)

        if message is None:
            _dialogue(conversation, answer)
            return
        reply, interrupted = answer(message)
    if json:
        print_json(reply)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _read_stdin() -> str:
    """All of stdin as one message."""
    try:
        return sys.stdin.buffer.read().decode().strip()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"stdin is not UTF-8 text (byte {error.start}); convert it first") from error


def _dialogue(conversation: Conversation, answer: Answer) -> None:
    """Turn after turn, until /quit or Ctrl-D. An error ends the turn, not the dialogue."""
    note("/memories lists what is remembered, /quit or Ctrl-D ends the dialogue, Ctrl-C ends an answer")
    while True:
        try:
            said = input("you> ").strip()
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:
            out.print()
            note("Ctrl-D or /quit ends the dialogue")
            continue
        if said == "/quit":
            return
        if said == "/memories":
            _list(conversation)
        elif said.startswith("/"):
            note(f"there is no {said.split()[0]}; there are /memories and /quit")
        elif said:
            try:
                answer(said)
            except AgentMemError as error:
                note(f"error: {error}", style="bold red")


def _answer(conversation: Conversation, said: str, temperature: float, *, show: bool) -> tuple[Reply, bool]:
    """Say it, show the pieces as they come, then what was read."""
    with catching_interrupt() as interrupt, conversation.stream(said, temperature=temperature) as stream:
        for piece in stream:
            if show:
                out.out(plain(piece), end="", highlight=False)
                out.file.flush()
            if interrupt.is_set():
                break
        stream.close()
        interrupted = interrupt.is_set()
    if show:
        out.print()
    reply = stream.reply
    if interrupted:
        note("stopped; what was said so far is remembered")
    if show and reply.memories:
        err.print(_reads(reply), no_wrap=True, overflow="ellipsis")
    for text in reply.notes:
        note(f"note: {text}")
    return reply, interrupted


def _reads(reply: Reply) -> Text:
    """One dim line: what was read, with its share of the attention."""
    shown = [f"{one_line(read.memory.text)} {percent(read.attention)}" for read in reply.memories[:_SHOWN_READS]]
    more = len(reply.memories) - len(shown)
    line = f"read {len(reply.memories)}: " + " · ".join(shown) + (f" · {more} more" if more else "")
    return Text(line, style="dim")


def _list(conversation: Conversation) -> None:
    memories = conversation.memories.list()
    if memories:
        out.print(memory_table(memories))
    note(f"{len(memories)} of {len(conversation.memories)} memories")
