"""What users say when they want a tool to be called, in many phrasings, and what the tools return."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agentmem.training.arguments import Argument, number
from agentmem.training.toolbox import _SUMS, MadeTool
from agentmem.training.values import Split, value


@dataclass(frozen=True)
class Request:
    """What is said, and the call that is right."""

    said: str
    tool: MadeTool
    arguments: dict[str, Any] = field(default_factory=dict)


Stand = Callable[[Argument], tuple[Any, str] | None]
"""Gives some arguments a value that is known from elsewhere, and the words that stand for it ("my hometown")."""

_ASKED = (
    "What is the {noun}{args}?", "What is the {noun}{args}?", "What's the {noun}{args}?", "Tell me the {noun}{args}.",
    "Show me the {noun}{args}, please.", "{Verb} the {noun}{args}.", "Please {verb} the {noun}{args}.",
    "Can you {verb} the {noun}{args}?", "I need the {noun}{args}.", "How is the {noun}{args}?", "{Verb} {noun}{args}.",
    "Which {noun} is there{args}?", "I would like to know the {noun}{args}.", "Could you check the {noun}{args}?",
    "Do you know the {noun}{args}?", "{Noun}{args}, please.", "Give me the {noun}{args}.", "Is there a {noun}{args}?",
)  # fmt: skip
_DONE = (
    "{Verb} a {noun}{args}.", "{Verb} a {noun}{args}.", "{Verb} the {noun}{args}.", "Please {verb} a {noun}{args}.",
    "Can you {verb} a {noun}{args}?", "I want to {verb} a {noun}{args}.", "I need to {verb} the {noun}{args}.",
    "Could you {verb} my {noun}{args}, please?", "{Verb} {noun}{args}.", "{Verb} my {noun}{args}!", "Go and {verb} the {noun}{args}.",
    "I would like to {verb} a {noun}{args}.", "Please {verb} us a {noun}{args}.", "Would you {verb} one {noun}{args}?",
)  # fmt: skip
_NAMED = (
    "Call {name}{args}.", "Use {name}{args}.", "Please call {name}{args}.", "Use the {name} tool{args}.", "Run {name}{args}.",
    "Call the tool {name}{args}.", "Can you call {name}{args}?", "{name}{args}", "I want you to use {name}{args}.",
)  # fmt: skip
_WORDED = ("Use the {words} tool{args}.", "{Words}{args}.", "{words}{args}", "Do the {words}{args}.", "{Words}{args}, please.")
_BARE = ("{Verb}{args}.", "{verb}{args}", "Please {verb}{args}.", "Can you {verb}{args}?", "I want to {verb}{args}.", "{Verb} it{args}.",
         "Could you {verb} something{args}?", "{Verb}{args}, please.")  # fmt: skip
_SUMMED = (
    "{verb} {a} and {b}", "{Verb} {a} and {b}.", "What is {a} {sign} {b}?", "What is {a} {word} {b}?", "{a} {sign} {b}",
    "Please {verb} {a} and {b}.", "Can you {verb} {a} and {b}?", "{Verb} {a} by {b}.", "{Verb} {a} with {b}.",
    "What is the {noun} of {a} and {b}?", "How much is {a} {word} {b}?", "Calculate {a} {sign} {b}.", "{Verb} {a} to {b}.",
    "{Verb} the numbers {a} and {b}.",
)  # fmt: skip
_HANDED = (
    "I want to talk to {noun}.", "I have a question about {noun}.", "Please transfer me to {noun}.", "Transfer me to {noun}.",
    "Can I speak to {noun}?", "Connect me with {noun}, please.", "I need help with {noun}.", "Get me the {noun} team.",
    "My problem is about {noun}.", "Ask {noun}.", "Hand me over to {noun}.", "I need {noun}.",
)  # fmt: skip


def _words(name: str) -> str:
    spaced = "".join(f" {c.lower()}" if c.isupper() else " " if c in "_-." else c for c in name)
    return " ".join(spaced.split())


def _filled(template: str, tool: MadeTool, args: str) -> str:
    words = _words(tool.name)
    said = template.format(
        noun=tool.noun, Noun=tool.noun.capitalize(), verb=tool.verb, Verb=tool.verb.capitalize(), name=tool.name,
        words=words, Words=words.capitalize(), args=args,
    )  # fmt: skip
    return said.replace(" a a", " an a").replace(" a e", " an e").replace(" a i", " an i").replace(" a o", " an o")


def _wanted(rng: random.Random, tool: MadeTool) -> list[Argument]:
    return [a for a in tool.arguments if a.required or rng.random() < 0.5]


def draw_request(rng: random.Random, tool: MadeTool, split: Split, stand: Stand = lambda argument: None) -> Request:
    """A request for this tool, with values of the split; arguments that are not needed are often left out."""
    wanted = _wanted(rng, tool)
    drawn: dict[str, tuple[Any, str]] = {}
    for argument in wanted:
        drawn[argument.key] = stand(argument) or _other(rng, argument, split, {said for _, said in drawn.values()})
    arguments = {key: one for key, (one, _) in drawn.items()}
    style = rng.random()
    if tool.style == "sum" and style < 0.75:
        sign, word, _ = _SUMS.get(tool.verb, ("and", "and", ""))
        a, b = (said for _, said in drawn.values())
        return Request(
            rng.choice(_SUMMED).format(verb=tool.verb, Verb=tool.verb.capitalize(), noun=tool.noun, a=a, b=b, sign=sign, word=word),
            tool, arguments,
        )  # fmt: skip
    if tool.style == "hand" and style < 0.85:
        return Request(rng.choice(_HANDED).format(noun=tool.noun), tool)
    if wanted and style > 0.95:
        return Request(_as_code(rng, tool, wanted, drawn), tool, arguments)
    if wanted and style > 0.9:
        return Request(_as_statements(rng, tool, wanted, drawn), tool, arguments)
    natural = all(a.says for a in wanted) and style < 0.66
    if natural and wanted and rng.random() < 0.1:
        return Request(_fronted(rng, tool, wanted, drawn), tool, arguments)
    args = _natural(rng, wanted, drawn) if natural else _keyed(rng, wanted, drawn)
    if natural or style < 0.78:
        templates: tuple[str, ...] = {"ask": _ASKED, "do": _DONE, "bare": _BARE}.get(tool.style, _WORDED)
    else:
        templates = _NAMED if rng.random() < 0.65 else _WORDED
    return Request(_filled(rng.choice(templates), tool, args), tool, arguments)


def _other(rng: random.Random, argument: Argument, split: Split, taken: set[str]) -> tuple[Any, str]:
    """A value that no other argument has, so that only one call is right."""
    for _ in range(5):
        one, said = argument.draw(rng, split)
        if said not in taken:
            break
    return one, said


def _natural(rng: random.Random, wanted: list[Argument], drawn: dict[str, tuple[Any, str]]) -> str:
    parts = [rng.choice(a.says).replace("{v}", drawn[a.key][1]) for a in wanted]
    if rng.random() < 0.6:
        rng.shuffle(parts)
    joint = " " if rng.random() < 0.75 else rng.choice([" and ", ", "])
    return " " + joint.join(parts) if parts else ""


def _keyed(rng: random.Random, wanted: list[Argument], drawn: dict[str, tuple[Any, str]]) -> str:
    """Every value right behind its key, or the value alone where there is only one."""
    if not wanted:
        return ""
    if len(wanted) == 1 and rng.random() < 0.4:
        return rng.choice([" {}", " for {}", " with {}", " on {}"]).format(drawn[wanted[0].key][1])
    form = rng.choice(["{w} {v}", "{w} {v}", "{w} {v}", "{w}: {v}", "{w} = {v}", "{w}={v}", "{k} {v}", "{k}: {v}"])
    parts = [form.format(w=a.words, k=a.key, v=drawn[a.key][1]) for a in wanted]
    if rng.random() < 0.5:
        rng.shuffle(parts)
    lead = rng.choice([" with ", " with ", " for ", ": ", ", ", " with the "])
    if rng.random() < 0.6 and len(parts) > 1:
        return lead + ", ".join(parts[:-1]) + " and " + parts[-1]
    return lead + ", ".join(parts)


def _as_code(rng: random.Random, tool: MadeTool, wanted: list[Argument], drawn: dict[str, tuple[Any, str]]) -> str:
    quote = rng.choice(["", '"', "'"])
    texts = [said if isinstance(one, (int, float)) else f"{quote}{said}{quote}" for one, said in (drawn[a.key] for a in wanted)]
    if rng.random() < 0.4:
        texts = [f"{a.key}={text}" for a, text in zip(wanted, texts, strict=True)]
    call = f"{tool.name}({', '.join(texts)})"
    return rng.choice(["{}", "{}", "What is the value of {}?", "What is {}? Use the tool.", "Run {}.", "Call {}, please."]).format(call)


def _as_statements(rng: random.Random, tool: MadeTool, wanted: list[Argument], drawn: dict[str, tuple[Any, str]]) -> str:
    head = rng.choice([f"{tool.verb.capitalize()} this {tool.noun}.", f"I need a {tool.noun}.", f"A {tool.noun}, please.",
                       f"It is about the {tool.noun}.", f"Use {tool.name}."])  # fmt: skip
    form = rng.choice(["The {w} is {v}", "Its {w} is {v}", "The {w} should be {v}"])
    parts = [form.format(w=a.words, v=drawn[a.key][1]) for a in wanted]
    rng.shuffle(parts)
    return f"{head} " + (". ".join(parts) if rng.random() < 0.5 else " and ".join([parts[0], *(p[0].lower() + p[1:] for p in parts[1:])])) + "."


def _fronted(rng: random.Random, tool: MadeTool, wanted: list[Argument], drawn: dict[str, tuple[Any, str]]) -> str:
    first, *rest = rng.sample(wanted, len(wanted))
    front = rng.choice([said for said in first.says if said[0] != "{"] or [f"With {first.words} {{v}}"]).replace("{v}", drawn[first.key][1])
    head = _filled(rng.choice({"ask": _ASKED[:2], "bare": _BARE[:4]}.get(tool.style, _DONE[:4])), tool, _natural(rng, rest, drawn))
    return f"{front[0].upper()}{front[1:]}, {head[0].lower()}{head[1:]}"


def draw_result(rng: random.Random, request: Request, split: Split, remarks: list[str]) -> str:
    """What the tool returns: words, a number, JSON, an error, or nothing of interest."""
    noun, kind = request.tool.noun, rng.random()
    if request.tool.style == "sum" and kind < 0.8:
        return str(number(rng, split)) if rng.random() < 0.8 else f"{number(rng, split)}.{rng.randrange(1, 10)}"
    if request.tool.style == "hand" and kind < 0.8:
        return rng.choice(['{{"assistant": "{0}"}}', "Transferred to {1}.", "Successfully transferred to {1}", "ok"]).format(
            noun.capitalize(), noun)  # fmt: skip
    word, n, code = value(rng, "word", split), number(rng, split), value(rng, "code", split)
    some = next((str(one) for one in request.arguments.values()), noun)
    if kind < 0.25:
        keys = rng.sample([noun, "status", "id", "name", "value", "ok", "temperature", "sky", "total", "city", word], rng.choice([1, 2, 2, 3]))
        fields = {key: rng.choice([lambda: number(rng, split), lambda: value(rng, "word", split), lambda: value(rng, "code", split),
                                   lambda: value(rng, "name", split), lambda: rng.random() < 0.5])() for key in keys}  # fmt: skip
        return json.dumps(fields, ensure_ascii=False)
    if kind < 0.33:
        return rng.choice(["error: no {noun} for {some}", "Error: {some} is unknown.", '{{"error": "{word}"}}', "error {n}", "Not found.",
                           "The {noun} is not available.", "error: try {word} later"]).format(noun=noun, some=some, n=n, word=word)  # fmt: skip
    if kind < 0.40 and remarks:
        return rng.choice(remarks)
    return rng.choice([
        "{word}, {n} degrees", "{word}", "{code}", "{n}", "{noun} {code} is {word}", "The {noun} is {word}.", "The {noun} is {code}.",
        "Done.", "ok", "{word} and {n}", "Your {noun} is confirmed: {code}.", "{noun} for {some}: {word}", "{some}: {word}, {n}",
        "Number {n} is ready for {some}.", "{noun} id {code}", "It is {word} in {some}.", "{n} {noun}s found", "{word}\n{code}", "true",
        "{word} {noun}, {n} euros, {code}", "Booked: {code}", "[{n}, {code}]", "1. {word} 2. {code}", "{n} %", "{word} since {n}",
    ]).format(word=word, n=n, code=code, noun=noun, some=some)  # fmt: skip
