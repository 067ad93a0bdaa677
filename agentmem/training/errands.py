"""Dialogues with tools: requests, calls, what the tools gave and what is said about it, between ordinary talk.

Ordinary talk (``dialogues.draw``) goes on while tools are offered: remarks and questions about what was told are no
requests. What a request leaves to memory ("in my hometown") stands in a chunk.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from agentmem.records import Message, Role
from agentmem.training.arguments import Argument, draw_arguments
from agentmem.training.dialogues import Chunk, Dialogue, Mix, draw
from agentmem.training.drills import drill_choice, drill_form, drill_pair, drill_spare
from agentmem.training.facts import RELATIONS, Fact, Relation, tell
from agentmem.training.requests import Request, draw_request, draw_result
from agentmem.training.smalltalk import PAIRS, QUESTION_REPLIES, REMARK_REPLIES
from agentmem.training.toolbox import MadeTool, draw_tools
from agentmem.training.turns import Errand, call, joined, reply, result, told, user
from agentmem.training.values import Split, value

SYSTEMS = (
    "You are a helpful assistant.",
    "Reply shortly. Use tools.",
    "You are an agent.",
    "Use the tools that you have.",
    "Be brief.",
    "You are a helpful assistant. Use the tools when needed.",
    "Answer in one sentence.",
    "You help customers of a small shop.",
    "You are a triage agent. Hand off to the right agent.",
    "You remember what the user told you.",
    "Reply in English.",
)
FINALS = ("final_result", "final_result", "final_answer", "final_answer", "return_result", "submit_answer")
_FINAL_KEYS = ("answer", "answer", "result", "response", "output", "value")
_FINAL_TEXTS = (
    "",
    "The final response which ends this conversation",
    "Provides a final answer to the given problem.",
    "Use this to give the final answer.",
    "Return the result to the user.",
)
_TALK = Mix(
    max_facts=3,
    max_chunks=6,
    corrected=0.1,
    unknown=0.25,
    noise=0.35,
    told_in_context=0.25,
    alike=0.2,
    max_questions=2,
)
_RECALL = Mix(
    min_facts=1,
    max_facts=3,
    max_chunks=6,
    corrected=0.1,
    unknown=0.1,
    noise=0.0,
    told_in_context=0.0,
    max_questions=2,
)
_OWNED = {
    kind: [r for r in RELATIONS if r.kind == kind and r.answer.startswith("Your ")]
    for kind in ("place", "name", "word", "code")
}
_THINGS = ("order", "ticket", "invoice", "case", "booking", "user")
_FACTS = ("status", "owner", "city", "total", "code", "name")
_RECORD_ASKED = (
    "What is the {f} of {t} {c}?",
    "What was the {f} of {t} {c}?",
    "Tell me the {f} of {t} {c}, please.",
    "Which {f} did {t} {c} have?",
)


class _Owner:
    """Facts that requests leave to memory."""

    def __init__(self, rng: random.Random, split: Split, rate: float, said: str) -> None:
        self.rng, self.split, self.rate, self.said = rng, split, rate, said
        self.facts: list[Fact] = []

    def stand(self, argument: Argument) -> tuple[Any, str] | None:
        """Now and then a fact in place of a value: its value, and the words that stand for it."""
        relations = _OWNED.get(argument.kind, [])
        if not relations or self.rng.random() >= self.rate:
            return None
        relation: Relation = self.rng.choice(relations)
        if relation.key in self.said or any(fact.relation.key == relation.key for fact in self.facts):
            return None
        (fact,) = tell(self.rng, [relation], self.split)
        self.facts.append(fact)
        return fact.value, f"my {relation.key}"


def draw_errand(rng: random.Random, utterances: list[tuple[str, str]], split: Split = "train") -> Errand:
    """One dialogue."""
    kind = rng.random()
    if kind < 0.06:
        return _final(rng, utterances, split)
    if kind < 0.19:
        return drill_form(rng, split)
    if kind < 0.23:
        return drill_pair(rng, split)
    if kind < 0.35:
        return drill_spare(rng, split)
    if kind < 0.43:
        return drill_choice(rng, split)
    if kind < 0.62:
        return _idle(rng, utterances, split)
    remarks = [said for said, _ in rng.sample(utterances, min(3, len(utterances)))]
    tools = draw_tools(rng, rng.choice([1, 2, 2, 2, 3, 3, 4]), split)
    errand = Errand([tool.openai() for tool in tools])
    today = date(2024, 1, 1) + timedelta(days=rng.randrange(4000))
    groups: list[list[Message]] = []
    talk = Dialogue()
    if rng.random() < 0.4:
        talk = draw(rng, _TALK, utterances, split)
        errand.chunks += talk.chunks
        turns = [Message(role=Role(role), content=text) for role, text in talk.turns]
        groups = [pair for i in range(0, len(turns), 2) if not _like_a_request(pair := turns[i : i + 2], tools)]
    owner = _Owner(rng, split, 0.08, " ".join([*(c.text for c in talk.chunks), *(text for _, text in talk.turns)]))
    if rng.random() < 0.12:
        groups.insert(rng.randint(0, len(groups)), _record(rng, errand.chunks, today, split))
    if rng.random() < 0.2:
        groups.insert(rng.randint(0, len(groups)), _exchange(rng, tools, owner, remarks, split))
    if rng.random() < 0.75 or not groups:
        groups.append(_exchange(rng, tools, owner, remarks, split))
    errand.chunks += [_stated_fact(rng, fact, today) for fact in owner.facts]
    if rng.random() < 0.2:
        past = draw_request(rng, rng.choice(tools), split)
        made = f"Calling {past.tool.name} with {json.dumps(past.arguments, ensure_ascii=False)}"
        given = draw_result(rng, past, split, [])
        errand.chunks += [Chunk("user", past.said, today), Chunk("assistant", made, today), Chunk("tool", given, today)]
    rng.shuffle(errand.chunks)
    if rng.random() < 0.4:
        errand.turns.append(Message(role=Role.SYSTEM, content=rng.choice(SYSTEMS)))
    errand.turns += [turn for group in groups for turn in group]
    return errand


def _idle(rng: random.Random, utterances: list[tuple[str, str]], split: Split) -> Errand:
    """Ordinary talk while tools are on offer: nothing of it is a request."""
    tools = draw_tools(rng, rng.choice([1, 1, 2, 2, 3, 4]), split)
    talk = draw(rng, _TALK, utterances, split)
    if rng.random() < 0.5:
        talk.turns = []
        talk.exchange(*rng.choice(PAIRS))
    turns = [Message(role=Role(role), content=text) for role, text in talk.turns]
    turns = turns[: 2 * rng.randint(1, len(turns) // 2)]
    if turns[-2].role is not Role.USER or _like_a_request(turns[-2:], tools):
        turns = [user("Thank you."), reply("You are welcome.")]
    return Errand([tool.openai() for tool in tools], talk.chunks, turns)


def _exchange(
    rng: random.Random, tools: list[MadeTool], owner: _Owner, remarks: list[str], split: Split
) -> list[Message]:
    """A request or two in one turn, the calls, one at a time, with their results, and the answer."""
    requests = [draw_request(rng, tool, split, owner.stand) for tool in _some(rng, tools)]
    turns, results = [user(joined(rng, requests))], []
    for request in requests:
        results.append(draw_result(rng, request, split, remarks))
        turns += [call(request.tool.name, request.arguments), result(results[-1])]
    return [*turns, reply(told(results))]


def _some(rng: random.Random, tools: list[MadeTool]) -> list[MadeTool]:
    """The tools that one turn asks for: mostly one, sometimes two, or the same one twice."""
    first = rng.choice(tools)
    if rng.random() < 0.5 or first.style == "hand":
        return [first]
    if first.arguments and rng.random() < 0.25:
        return [first, first]
    others = [tool for tool in tools if tool is not first]
    return [first, rng.choice(others)] if others else [first]


def _like_a_request(pair: list[Message], tools: list[MadeTool]) -> bool:
    """Whether a remark that gets a neutral reply sounds as if it asked for one of the tools."""
    if pair[1].content not in (*REMARK_REPLIES, *QUESTION_REPLIES):
        return False
    words = {word for tool in tools for word in (tool.verb, tool.noun, *tool.name.lower().split("_"))}
    return bool(words & set(re.findall(r"[a-z]+", pair[0].content.lower())))


def _stated_fact(rng: random.Random, fact: Fact, today: date) -> Chunk:
    if rng.random() < 0.3:
        return Chunk("assistant", fact.acknowledged(rng), today)
    return Chunk("user", _readable(fact, rng), today)


def _readable(fact: Fact, rng: random.Random) -> str:
    """A statement that names the thing before its value: a chunk that begins with the value cannot be found by it."""
    while (said := fact.told(rng)).find(fact.relation.key) > said.rfind(fact.value):
        continue
    return said


def _record(rng: random.Random, chunks: list[Chunk], today: date, split: Split) -> list[Message]:
    """Records that a tool gave long ago, and a question about one of them."""
    thing, fact = rng.choice(_THINGS), rng.choice(_FACTS)
    rows: dict[str, str] = {}
    for _ in range(rng.choice([1, 2, 3])):
        rows[value(rng, "code", split)] = value(rng, rng.choice(("word", "name", "code")), split)
    for code, one in rows.items():
        text = json.dumps({thing: code, fact: one}) if rng.random() < 0.7 else f"{thing} {code}: {fact} {one}"
        chunks.append(Chunk("tool", text, today))
    code = rng.choice(list(rows))
    asked = rng.choice(_RECORD_ASKED).format(f=fact, t=thing, c=code)
    return [user(asked), reply(f"The {fact} of {thing} {code} is {rows[code]}.")]


def _final(rng: random.Random, utterances: list[tuple[str, str]], split: Split) -> Errand:
    """A dialogue that ends with a call of a tool for the answer, as some frameworks want it."""
    name, described, key = rng.choice(FINALS), rng.choice(_FINAL_TEXTS), rng.choice(_FINAL_KEYS)
    final = MadeTool(name, "do", "give", "answer", (Argument(key, "text", ()),), described)
    tools = draw_tools(rng, rng.choice([0, 1, 2]), split)
    errand, kind = Errand(), rng.random()
    if kind < 0.4:  # a form to be filled from what is said
        final = replace(final, arguments=tuple(draw_arguments(rng, rng.choice([1, 2, 2, 3]), split)))
        request = _stated(rng, final, split)
        errand.turns = [user(request.said), call(name, request.arguments)]
    elif kind < 0.75:  # an answer from memory
        talk = draw(rng, _RECALL, utterances, split)
        errand.chunks = talk.chunks
        for (_, said), (_, answer) in zip(talk.turns[:1], talk.turns[1:2], strict=True):
            errand.turns += [user(said), call(name, {key: answer})]
    else:
        tools = tools or draw_tools(rng, 1, split)
        request = draw_request(rng, rng.choice(tools), split)
        while (given := draw_result(rng, request, split, [])) and ('"' in given or "\n" in given):
            continue
        made = call(request.tool.name, request.arguments)
        errand.turns = [user(request.said), made, result(given), call(name, {key: given})]
    errand.tools = [tool.openai() for tool in sorted([final, *tools], key=lambda tool: tool.name)]
    if not errand.chunks and utterances:
        errand.chunks = [Chunk("user", rng.choice(utterances)[0], date(2024, 1, 1) + timedelta(rng.randrange(4000)))]
    if rng.random() < 0.3:
        errand.turns.insert(0, Message(role=Role.SYSTEM, content=rng.choice(SYSTEMS)))
    return errand


def _stated(rng: random.Random, tool: MadeTool, split: Split) -> Request:
    """Statements that hold the values of a form's arguments, and that it is to be filled."""
    drawn = {a.key: a.draw(rng, split) for a in tool.arguments}
    form = rng.choice(["The {w} is {v}", "My {w} is {v}", "Its {w} is {v}", "{w}: {v}", "the {w} {v}", "{w} {v}"])
    parts = [form.format(w=a.words, v=drawn[a.key][1]) for a in tool.arguments]
    if rng.random() < 0.5:
        rng.shuffle(parts)
    said = rng.choice([". ", " and ", ", "]).join(parts) + "."
    return Request(said, tool, {key: one for key, (one, _) in drawn.items()})
