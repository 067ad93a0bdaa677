"""What a step of an agent costs as its history grows: ``python -m benchmarks.agent_loop --trajectories FILE``.

A step is one more call and its result; its time is that of the whole turn, from the list to the end of a short reply.
Contenders, on one model and in one process, in a new order for each step: agentmem with the whole list of messages
each time, as frameworks send it; agentmem with the new messages only; the whole list as context, where it fits, with
the KV of what was read before kept; the last few messages as context.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

from agentmem.dialogue import check_dialogue
from agentmem.evaluation.figures import Spread, rate, spread
from agentmem.evaluation.machine import describe
from agentmem.llm import BUNDLED, MemoryLLM
from agentmem.model.prefix import Prefix
from benchmarks.machine import console
from benchmarks.shapes import Shape, build
from benchmarks.trajectories import TASK, Asked, draw, read

CHECKPOINTS = (10, 100, 1000, 5000)
MEASURED = 25
"""Steps up to each checkpoint that are timed one by one; half of them at the first ones."""
NEW_TOKENS = 2
"""Of a step's reply."""
ANSWER_TOKENS = 32
HEADROOM = 64
"""Positions kept free for a question and its answer."""
HEAD = [
    "contender",
    "step",
    "ms",
    "ms of CPU",
    "of its first",
    "prompt + memory tokens",
    "value of step 3",
    "other values",
]

Messages = list[dict[str, Any]]
Step = tuple[dict[str, Any], dict[str, Any]]


class Contender(StrEnum):
    """How an agent's history is kept."""

    WHOLE = "agentmem, whole list"
    NEW = "agentmem, new messages"
    FULL = "full context"
    LAST = "last messages"


class Taken(NamedTuple):
    """What a step took: seconds, seconds of CPU of all threads, and tokens of the prompt and of memory."""

    seconds: float
    cpu: float
    prompt: int
    memory: int


class Agents:
    """One agent of each kind."""

    def __init__(self, model: str, folder: Path, last: int) -> None:
        self.whole = MemoryLLM(model, store=folder / "whole.db")
        self.new = MemoryLLM(model, store=folder / "new.db")
        self._last = last
        self._messages: Messages = [TASK]
        self._conversations = [llm.conversation(user="agent", session="loop") for llm in (self.whole, self.new)]
        self._sent = 0
        self._newest: str | None = None
        self._read: Prefix | None = None

    def add(self, steps: list[Step]) -> None:
        """More calls and results."""
        self._messages += [message for step in steps for message in step]

    def fits(self, contender: Contender) -> bool:
        """Whether the model's context holds what this contender puts into it."""
        if contender is not Contender.FULL:
            return True
        characters = sum(len(message["content"] or "") for message in self._messages)
        positions = self.whole.model.max_positions
        return characters < 16 * positions and len(self._prompt(self._messages)) + HEADROOM <= positions

    def step(self, contender: Contender) -> Taken:
        """Reply to what was added last."""
        messages = [dict(message) for message in self._messages]  # a framework makes the list anew
        new, began, cpu = messages[self._sent :], time.perf_counter(), time.process_time()
        memory = 0
        if contender is Contender.WHOLE:
            usage = self._conversations[0].chat(messages, max_new_tokens=NEW_TOKENS).usage
            prompt, memory = usage.prompt_tokens, usage.memory_tokens
        elif contender is Contender.NEW:
            reply = self._conversations[1].chat(new, max_new_tokens=NEW_TOKENS, after=self._newest)
            self._newest, self._sent = reply.turn, len(messages)
            prompt, memory = reply.usage.prompt_tokens, reply.usage.memory_tokens
        else:
            prompt = self._generate(contender, messages, NEW_TOKENS)[1]
        return Taken(time.perf_counter() - began, time.process_time() - cpu, prompt, memory)

    def ask(self, contender: Contender, question: str) -> str:
        """The answer to a question behind all steps; nothing of it is kept."""
        asked = {"role": "user", "content": question}
        options: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS, "remember": False}
        if contender is Contender.WHOLE:
            return self._conversations[0].chat([*self._messages, asked], **options).text
        if contender is Contender.NEW:
            return self._conversations[1].chat([asked], after=self._newest, **options).text
        return self._generate(contender, [*self._messages, asked], ANSWER_TOKENS)[0].strip()

    def _generate(self, contender: Contender, messages: Messages, tokens: int) -> tuple[str, int]:
        messages = messages if contender is Contender.FULL else messages[-self._last :]
        prompt = self._prompt(messages)
        while len(prompt) + tokens > self.whole.model.max_positions:  # not even the last ones fit
            messages = messages[1:]
            prompt = self._prompt(messages)
        generation = self.whole.model.generate(
            prompt, reads=[(0, None), (len(prompt) - 1, None)], max_new_tokens=tokens, begun=self._read
        )
        text = generation.text
        if contender is Contender.FULL:
            self._read = generation.prefix
        return text, len(prompt)

    def _prompt(self, messages: Messages) -> list[int]:
        return self.whole.model.chat.render(check_dialogue(messages).said)

    def flush(self) -> None:
        """Wait for what is written in the background."""
        self.whole.flush()
        self.new.flush()

    def close(self) -> None:
        """Store what is pending."""
        self.whole.close()
        self.new.close()


def measure(
    agents: Agents,
    chosen: list[Contender],
    steps: list[Step],
    asked: list[Asked],
    group: int,
    ask: bool,
    advance: Callable[[int], None],
) -> Iterator[list[dict[str, Any]]]:
    """All steps; at each checkpoint the rows so far, one for each contender and checkpoint."""
    rng, at = random.Random(0), 0
    rows: list[dict[str, Any]] = []
    contenders = chosen
    for checkpoint in [one for one in CHECKPOINTS if one <= len(steps)]:
        first = max(at, checkpoint - min(MEASURED, checkpoint // 2))
        times: dict[Contender, list[Taken]] = {one: [] for one in chosen}
        while at < checkpoint:
            n = min(group, first - at) if at < first else 1
            if at == first:
                agents.flush()
            agents.add(steps[at : at + n])
            contenders = [one for one in contenders if agents.fits(one)]
            for contender in rng.sample(contenders, len(contenders)):
                taken = agents.step(contender)
                if at >= first:
                    times[contender].append(taken)
            at += n
            advance(at)
        agents.flush()
        told = [one for one in asked if one.step <= checkpoint] if ask else []
        for contender in chosen:
            row: dict[str, Any] = {"contender": contender.value, "step": checkpoint, "fits": contender in contenders}
            if row["fits"]:
                exact = {one.step: agents.ask(contender, one.question) == one.answer for one in told}
                taken_here = times[contender]
                row |= {
                    "step_seconds": spread([taken.seconds for taken in taken_here]),
                    "step_cpu": spread([taken.cpu for taken in taken_here]),
                    "prompt_tokens": max(taken.prompt for taken in taken_here),
                    "memory_tokens": max(taken.memory for taken in taken_here),
                    "first": rate(right for step, right in exact.items() if step == asked[0].step),
                    "others": rate(right for step, right in exact.items() if step != asked[0].step),
                }
            rows.append(row)
            first_row = next((one for one in rows if one["contender"] == contender and one["fits"]), None)
            if row["fits"] and first_row is not None:
                row["ratio"] = row["step_cpu"]["median"] / first_row["step_cpu"]["median"]
        yield rows


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if not row["fits"]:
        return [row["contender"], f"{row['step']:,}", "does not fit", "", "", "", "", ""]
    exact = [f"{row[name]['hits']} of {row[name]['n']}" if row[name]["n"] else "" for name in ("first", "others")]
    tokens = f"{row['prompt_tokens']:,} + {row['memory_tokens']:,}"
    timed = [_ms(row["step_seconds"]), _ms(row["step_cpu"])]
    return [row["contender"], f"{row['step']:,}", *timed, f"{row['ratio']:.2f}", tokens, *exact]


def _ms(seconds: Spread) -> str:
    return f"{1000 * seconds['median']:.0f} ({1000 * seconds['q1']:.0f}-{1000 * seconds['q3']:.0f})"


def main(
    trajectories: Annotated[Path, typer.Option(help="File of trajectories, as tau-bench has them (.json, .json.xz).")],
    shape: Annotated[
        Shape, typer.Option(help="The model; all but the bundled one have random weights.")
    ] = Shape.BUNDLED,
    steps: Annotated[int, typer.Option(min=10, help="Steps.")] = CHECKPOINTS[-1],
    characters: Annotated[int, typer.Option(min=20, help="Of each result.")] = 250,
    last: Annotated[int, typer.Option(min=1, help="Messages that the last contender keeps.")] = 4,
    group: Annotated[
        int, typer.Option(min=1, help="Steps that come at once where none is timed; 1: every step is a turn.")
    ] = 1,
    contender: Annotated[list[Contender] | None, typer.Option(help="Only these; several may be named.")] = None,
    seed: Annotated[int, typer.Option(help="Of values and places.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("agent_loop.json"),
    model: Annotated[
        str, typer.Option(envvar="AGENTMEM_TEST_MODEL", help="Folder of the bundled shape's model.")
    ] = BUNDLED,
) -> None:
    """Measure steps of an agent against growing histories."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    screen, chosen = console(), contender or list(Contender)
    drawn = draw(read(trajectories), steps, characters, seed)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="agentmem-loop-") as name,
        Progress(*columns, console=screen, disable=not screen.is_terminal) as progress,
    ):
        folder = Path(name)
        if shape is not Shape.BUNDLED:
            build(shape, folder / shape.value)
        agents = Agents(model if shape is Shape.BUNDLED else str(folder / shape.value), folder, last)
        task = progress.add_task("steps", total=steps)

        def advance(step: int) -> None:
            progress.update(task, completed=step)

        options = f"--shape {shape} --steps {steps} --characters {characters} --last {last} --group {group}"
        if contender:
            options += "".join(f' --contender "{one}"' for one in contender)
        command = f"python -m benchmarks.agent_loop --trajectories {trajectories.name} {options} --threads {threads}"
        result: dict[str, Any] = {
            "benchmark": "agent_loop",
            "command": command,
            "machine": describe(threads),
            "model": Path(model).name if shape is Shape.BUNDLED else shape.value,
            "shape": shape.value,
            "steps": steps,
        }
        try:
            for rows in measure(agents, chosen, drawn.steps, drawn.asked, group, shape is Shape.BUNDLED, advance):
                result["rows"] = rows  # a long run that is ended early has its first checkpoints
                out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        finally:
            agents.close()
    for row in result["rows"]:
        screen.print(" | ".join(cells(row)))


if __name__ == "__main__":
    typer.run(main)
