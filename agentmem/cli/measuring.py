"""Running one task of ``agentmem eval``: progress, the table, the files; and what its options name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import TaskID

from agentmem.cli.output import note, out, print_json, progress
from agentmem.errors import InvalidInput

if TYPE_CHECKING:  # these need torch, and are imported when a task is run
    from agentmem.evaluation.perplexity import Contender
    from agentmem.evaluation.progress import Advance
    from agentmem.evaluation.result import Result
    from agentmem.recipes import StreamRecipe
    from agentmem.training.texts import Document

_WIDTH = 160
"""Columns of a table where there is no terminal to ask."""


def run(task: Callable[[Advance], Result], folder: Path, json: bool) -> None:
    """Run a task with a progress bar, print its table, and write its files.

    Raises:
        InvalidInput: plots cannot be drawn here (found out before the task is run), or the task refuses its settings.
    """
    from transformers.utils.logging import disable_progress_bar

    from agentmem.evaluation import plotting

    plotting.check()
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()  # of loading weights, which would break into ours
    bars: dict[str, TaskID] = {}
    with progress() as shown:

        def advance(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=total)
            shown.update(bars[what], completed=done, total=total)

        result = task(advance)
    written = result.write(folder)
    if json:
        print_json(result.as_json())
    else:
        (out if out.is_terminal else Console(width=_WIDTH)).print(result.table())
    note(f"written: {', '.join(map(str, written))}")


def contenders(texts: list[str]) -> list[Contender]:
    """What ``--contender`` names.

    Raises:
        InvalidInput: not NAME=MODEL[@RECIPE], a name given twice, or a recipe that does not exist.
    """
    from agentmem.evaluation.perplexity import Contender
    from agentmem.recipes import memory_recipe
    from agentmem.recipes.spec import parse_recipe

    found: dict[str, Contender] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        model, _, recipe = rest.partition("@")
        if not name or not model or name in found:
            raise InvalidInput(f"--contender {text!r}: write NAME=MODEL or NAME=MODEL@RECIPE, each name once")
        chosen = memory_recipe(parse_recipe(recipe)) if recipe else None
        found[name] = Contender(name, None if model == "bundled" else model, chosen)
    return list(found.values())


def document(path: Path) -> Document:
    """The one document of a file. Raises InvalidInput where there is none, or several."""
    from agentmem.training.texts import read_documents

    documents = read_documents([path])
    if len(documents) > 1:
        raise InvalidInput(f"{path} holds {len(documents)} documents; give a file with one")
    return documents[0]


def streams(texts: list[str]) -> list[StreamRecipe]:
    """Recipes that keep a session as one stream. Raises InvalidInput for one that does not, or does not exist."""
    from agentmem.recipes import stream_recipe
    from agentmem.recipes.spec import parse_recipe

    return [stream_recipe(parse_recipe(text)) for text in texts]
