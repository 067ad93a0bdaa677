"""Opening a store, with or without a language model, and finding memories in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agentmem.cli.output import err, note, plain, short_id
from agentmem.errors import InvalidInput, NotFound, StoreOpenError
from agentmem.records import Memory, Scope
from agentmem.store import ScopedMemories, Store
from agentmem.store.postgres.engine import is_postgres

if TYPE_CHECKING:
    from agentmem.llm import MemoryLLM

_PAGE = 500
"""Memories read at once when all of them are looked through."""


@contextmanager
def open_store(where: str, *, create: bool = False) -> Iterator[Store]:
    """The store at ``where`` (a file or an address) without a language model.

    Raises:
        StoreOpenError: there is none (and ``create`` is False), or it cannot be opened.
    """
    if not create:
        must_exist(where)
    with Store.open(where) as store:
        yield store


@contextmanager
def open_scope(where: str, user: str, agent: str, session: str | None) -> Iterator[ScopedMemories]:
    """The memories of one scope, without a language model.

    Raises:
        StoreOpenError: there is no store at ``where``, or it cannot be opened.
        InvalidInput: the scope cannot be used.
    """
    scope = make_scope(user, agent, session)
    with open_store(where) as store:
        if not any((space.user, space.agent) == (scope.user, scope.agent) for space in store.spaces()):
            known = ", ".join(sorted({_named(space) for space in store.spaces()})) or "nobody yet"
            note(f"nothing was ever stored for {_named(scope)}; this store remembers {known}")
        yield store.scope(scope)


@contextmanager
def open_llm(where: str, model: str | None, **options: Any) -> Iterator[MemoryLLM]:
    """A language model with the store at ``where``; shows that it is busy while it loads and while it stores.

    Raises:
        ModelLoadError, UnsupportedModel, StoreOpenError, SchemaTooNew, InvalidInput.
    """
    here = model is None or Path(model).is_dir()
    with err.status("loading the model") if here else nullcontext():  # a download shows its own progress
        llm = load_llm(where, model, **options)
    try:
        yield llm
    finally:
        with err.status("storing what was said"):
            llm.close()


def load_llm(where: str | Path, model: str | None, **options: Any) -> MemoryLLM:
    """A language model with the store at ``where``; the caller closes it.

    Raises:
        ModelLoadError, UnsupportedModel, StoreOpenError, SchemaTooNew, InvalidInput.
    """
    # Imported here: torch and transformers take seconds, and most commands need neither.
    from transformers.utils.logging import disable_progress_bar

    from agentmem.llm import MemoryLLM

    disable_progress_bar()  # of loading weights, a matter of a second; downloads keep theirs
    return MemoryLLM(model, store=where, **options)


def make_scope(user: str, agent: str, session: str | None) -> Scope:
    """The scope that the options name.

    Raises:
        InvalidInput: a segment cannot be used.
    """
    if not user:
        raise InvalidInput("--user is empty; name the user whose memories these are")
    try:
        return Scope(user=user, agent=agent, session=session)
    except ValidationError as error:
        why = "; ".join(
            f"--{detail['loc'][0]}: {detail['msg'].removeprefix('Value error, ')}" for detail in error.errors()
        )
        raise InvalidInput(why) from error


def find(memories: ScopedMemories, ids: Sequence[str]) -> list[Memory]:
    """The memories with these ids, each whole or as ``short_id`` shows it; each once, in this order.

    Raises:
        NotFound: an id is unknown in this scope.
        InvalidInput: a shortened id fits several memories.
    """
    found: dict[str, Memory] = {}
    for id in ids:
        memory = _find(memories, id)
        found[memory.id] = memory
    return list(found.values())


def everything(memories: ScopedMemories) -> Iterator[Memory]:
    """All memories of the scope, oldest first."""
    offset = 0
    while page := memories.list(sort="created_at", limit=_PAGE, offset=offset):
        yield from page
        offset += len(page)


def _find(memories: ScopedMemories, id: str) -> Memory:
    try:
        return memories.get(id)
    except NotFound:
        fitting = [memory for memory in everything(memories) if short_id(memory.id) == id]
        if not fitting:
            raise
        if len(fitting) > 1:
            raise InvalidInput(
                f"{plain(id)} is short for several ids: {', '.join(memory.id for memory in fitting)}; write one in full"
            ) from None
        return fitting[0]


def _named(scope: Scope) -> str:
    return f"--user {scope.user}" + (f" --agent {scope.agent}" if scope.agent else "")


def must_exist(where: str) -> None:
    """Refuse a file that is not there, before anything is made.

    Raises:
        InvalidInput: an empty string.
        StoreOpenError: no such file.
    """
    if not where:
        raise InvalidInput("the store is an empty string; give its file, or its postgresql:// address")
    if not is_postgres(where) and not Path(where).exists():
        raise StoreOpenError(
            f"there is no store at {where}; give its file with --store, or make one with: agentmem chat"
        )
