"""How often the bundled model calls tools rightly: ``python -m benchmarks.tool_calls``.

Tools whose names and arguments were held out of training are offered, one to four at once, and asked for in words; the
values are held out, too. Every case is a conversation of its own through ``MemoryLLM``, decoded greedily as users get
it. A call is right when it is the only one, of the right tool, and every argument is exactly what was said. Arguments
are counted, too: one that nobody gave is wrong, and so are all of a call of another tool. The tool's result is then
handed back (behind the right call, where the model's own was wrong), and the answer has to hold it, word for word, and
to call nothing.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from agentmem import MemoryLLM, Message, Role, ToolCall
from agentmem.evaluation.figures import Rate, rate
from agentmem.evaluation.machine import describe
from agentmem.llm import BUNDLED
from agentmem.training.facts import RELATIONS, tell
from agentmem.training.requests import Request, draw_request, draw_result
from agentmem.training.smalltalk import PAIRS
from agentmem.training.toolbox import MadeTool, draw_tools
from benchmarks.machine import console

KINDS = ("no argument", "one argument", "two arguments", "three or more", "numbers only", "with a choice")
TALKS = ("remark", "told", "asked")
OTHERS = (
    "each argument",
    "two calls",
    "required",
    "answer with the result",
    "answer with two results",
    "talk: no call",
    "talk: remembered",
)
TARGET = 0.9
_JOINT = ", and then "


@dataclass(frozen=True)
class Case:
    """Tools that are offered, and what is asked of them in one turn, with what each call will return."""

    kind: str
    tools: tuple[dict[str, Any], ...]
    said: str
    calls: tuple[ToolCall, ...]
    results: tuple[str, ...]


def kind_of(request: Request) -> str:
    """The kind that a request counts as."""
    arguments = [a for a in request.tool.arguments if a.key in request.arguments]
    if any(a.choices for a in arguments):
        return "with a choice"
    if arguments and all(a.kind in ("count", "amount") for a in arguments):
        return "numbers only"
    return KINDS[min(3, len(arguments))]


def cases(n: int, seed: int) -> list[Case]:
    """n cases of each kind, and n in which two tools are asked for. The same for every model."""
    rng = random.Random(seed)
    wanted = dict.fromkeys((*KINDS, "two calls"), n)
    found: list[Case] = []
    while any(wanted.values()):
        tools = draw_tools(rng, rng.choice([1, 2, 2, 3, 4]), "heldout")
        requests = [draw_request(rng, tool, "heldout") for tool in rng.sample(tools, min(2, len(tools)))]
        two = len(requests) == 2 and wanted["two calls"] and rng.random() < 0.3
        kind = "two calls" if two else kind_of(requests[0])
        if wanted[kind]:
            wanted[kind] -= 1
            found.append(_case(rng, kind, tools, requests if kind == "two calls" else requests[:1]))
    return found


def _case(rng: random.Random, kind: str, tools: Sequence[MadeTool], requests: Sequence[Request]) -> Case:
    said = requests[0].said
    for request in requests[1:]:
        said = said.rstrip(".?!") + _JOINT + request.said[0].lower() + request.said[1:]
    calls = tuple(ToolCall(id=f"call_{n}", name=r.tool.name, arguments=r.arguments) for n, r in enumerate(requests))
    results = tuple(draw_result(rng, r, "heldout", []) for r in requests)
    return Case(kind, tuple(tool.openai() for tool in tools), said, calls, results)


def same(calls: Sequence[ToolCall], wanted: ToolCall) -> bool:
    """Whether this is the one call that was wanted, in its name and every argument."""
    return [(one.name, one.arguments) for one in calls] == [(wanted.name, wanted.arguments)]


def arguments_of(calls: Sequence[ToolCall], wanted: ToolCall) -> list[bool]:
    """Of each argument that was wanted or given, whether it is right."""
    given = calls[0].arguments if len(calls) == 1 and calls[0].name == wanted.name else {}
    meant = wanted.arguments
    return [key in given and key in meant and given[key] == meant[key] for key in {**meant, **given}]


def play(llm: MemoryLLM, case: Case, user: str, choice: str) -> Iterator[tuple[str, bool, str]]:
    """What is judged of one case: name of the figure, whether it was right, and what was said."""
    conversation = llm.conversation(user=user)
    turns: list[Any] = [Message(role=Role.USER, content=case.said)]
    right, said = True, []
    for wanted, result in zip(case.calls, case.results, strict=True):
        reply = conversation.chat(turns, tools=list(case.tools), tool_choice=choice)
        good = same(reply.tool_calls, wanted)
        right = right and good
        if choice == "auto" and len(case.calls) == 1:
            yield from (("each argument", one, reply.message.text) for one in arguments_of(reply.tool_calls, wanted))
        said.append(reply.message.text)
        made = reply.message if good else Message(role=Role.ASSISTANT, content="", tool_calls=(wanted,))
        turns += [made, Message(role=Role.TOOL, content=result, tool_call_id=made.tool_calls[0].id)]
    yield case.kind, right, " | ".join(said)
    if choice == "required":
        return
    reply = conversation.chat(turns, tools=list(case.tools))
    told = not reply.tool_calls and all(result in reply.text for result in case.results)
    name = "answer with the result" if len(case.results) == 1 else "answer with two results"
    yield name, told, reply.message.text


def talk(llm: MemoryLLM, rng: random.Random, user: str) -> Iterator[tuple[str, bool, str]]:
    """Remarks, a fact and a question about it in another session, with tools on offer that none of them asks for."""
    tools = [tool.openai() for tool in draw_tools(rng, rng.choice([1, 2, 3]), "heldout")]
    (fact,) = tell(rng, [rng.choice(RELATIONS[:80])], "heldout")
    remark, _ = rng.choice(PAIRS)
    for name, said in zip(TALKS, (remark, fact.told(rng), fact.asked(rng)), strict=True):
        reply = llm.conversation(user=user).chat(said, tools=tools)
        yield "talk: no call", not reply.tool_calls and reply.finish_reason == "stop", f"{said} -> {reply.message.text}"
        if name == "asked":
            yield "talk: remembered", fact.value in reply.text, f"{fact.value}: {reply.text}"


def measure(llm: MemoryLLM, n: int, seed: int, screen: Console, wrong: list[str]) -> dict[str, Rate]:
    """Play all cases. ``wrong`` is filled with what was not right."""
    outcomes: dict[str, list[bool]] = {}
    rng = random.Random(seed + 1)

    def judge(name: str, right: bool, said: str, asked: str) -> None:
        outcomes.setdefault(name, []).append(right)
        if not right:
            wrong.append(f"{name}: {asked} -> {said}")

    every = cases(n, seed)
    for number, case in enumerate(track(every, "calls", console=screen, disable=not screen.is_terminal)):
        for name, right, said in play(llm, case, f"user {number}", "auto"):
            judge(name, right, said, case.said)
    for number in range(n):
        for name, right, said in talk(llm, rng, f"talker {number}"):
            judge(name, right, said, "")
    single = [case for case in every if case.kind != "two calls"]
    for number, case in enumerate(rng.sample(single, n)):
        for _, right, said in play(llm, replace(case, kind="required"), f"bound {number}", "required"):
            judge("required", right, said, case.said)
    rates = {"all calls": rate(right for kind in KINDS for right in outcomes[kind])}
    return rates | {name: rate(outcomes[name]) for name in (*KINDS, *OTHERS)}


def cells(rates: dict[str, Rate]) -> list[list[str]]:
    """Rows of the report: figure, rate, interval, cases."""
    return [
        [name, f"{figure['rate']:.1%}", f"{figure['low']:.1%} to {figure['high']:.1%}", str(figure["n"])]
        for name, figure in rates.items()
    ]


HEAD = ["figure", "right", "95 % interval (Wilson)", "cases"]


def main(
    n: Annotated[int, typer.Option("--cases", min=1, help="Cases of each kind.")] = 50,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("tool_calls.json"),
    model: Annotated[str, typer.Option(help="Folder or hub id of the model.")] = BUNDLED,
    seed: Annotated[int, typer.Option(help="Seed of what is said.")] = 1,
    show_wrong: Annotated[bool, typer.Option("--wrong", help="Print what was not right.")] = False,
) -> None:
    """Measure calls of tools. The exit code says whether it ran; the report says how well."""
    screen = console()
    began = time.monotonic()
    wrong: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="agentmem-calls-") as folder,
        MemoryLLM(model, store=Path(folder) / "memory.db", device="cpu") as llm,
    ):
        rates = measure(llm, n, seed, screen, wrong)
    name = Path(model).name
    result = {
        "benchmark": "tool_calls",
        "command": f"python -m benchmarks.tool_calls --cases {n} --seed {seed} --model {name}",
        "machine": describe(1),
        "model": name,
        "wall_seconds": time.monotonic() - began,
        "rates": rates,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = Table(title=f"calls of held-out tools, {n} of each kind; target {TARGET:.0%}")
    for title in HEAD:
        table.add_column(title)
    for row in cells(rates):
        table.add_row(*row)
    screen.print(table)
    if show_wrong:
        screen.print("\n".join(wrong), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
