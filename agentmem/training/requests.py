"""What users say when they want a tool to be called, with the call that is right, and what the tool returns."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agentmem.training.arguments import Argument, number
from agentmem.training.phrasings import (
    ASKED,
    BARE,
    DONE,
    FAILED,
    HANDED,
    NAMED,
    RETURNED,
    SHORT,
    STATED,
    SUMMED,
    TRANSFERRED,
    WORDED,
)
from agentmem.training.toolbox import SUMS, MadeTool
from agentmem.training.values import Split, value


@dataclass(frozen=True)
class Request:
    """What is said, and the call that is right."""

    said: str
    tool: MadeTool
    arguments: dict[str, Any] = field(default_factory=dict)


Drawn = dict[str, tuple[Any, str]]
"""Of each argument, by its key: the value, and how it is said."""
Stand = Callable[[Argument], tuple[Any, str] | None]
"""Gives some arguments a value that is known from elsewhere, and the words that stand for it ("my hometown")."""

_KEYED = ("{w} {v}", "{w} {v}", "{w} {v}", "{w}: {v}", "{w} = {v}", "{w}={v}", "{k} {v}", "{k}: {v}")
_CODED = ("{}", "{}", "What is the value of {}?", "What is {}? Use the tool.", "Run {}.", "Call {}, please.")
_FIELDS = ("status", "id", "name", "value", "ok", "temperature", "sky", "total", "city")


def draw_request(rng: random.Random, tool: MadeTool, split: Split, stand: Stand = lambda argument: None) -> Request:
    """A request for this tool, with values of the split; arguments that are not needed are often left out."""
    wanted = [a for a in tool.arguments if a.required or rng.random() < 0.5]
    drawn: Drawn = {}
    for argument in wanted:
        drawn[argument.key] = stand(argument) or _other(rng, argument, split, drawn)
    return Request(_said(rng, tool, wanted, drawn), tool, {key: one for key, (one, _) in drawn.items()})


def draw_choice(rng: random.Random, tool: MadeTool) -> Request:
    """A request in few words for a tool without arguments."""
    return Request(_filled(rng.choice((*SHORT, *NAMED, *WORDED)), tool, ""), tool)


def draw_form(rng: random.Random, tool: MadeTool, split: Split) -> Request:
    """A request that gives a value to each of many arguments: many values to copy in few tokens."""
    drawn: Drawn = {}
    for argument in tool.arguments:
        drawn[argument.key] = _other(rng, argument, split, drawn)
    style = rng.choice([_as_form, _as_form, _as_form, _as_statements, _as_code])
    said = style(rng, tool, list(tool.arguments), drawn)
    return Request(said, tool, {key: one for key, (one, _) in drawn.items()})


def _said(rng: random.Random, tool: MadeTool, wanted: list[Argument], drawn: Drawn) -> str:
    style = rng.random()
    if tool.style == "sum" and drawn and style < 0.75:
        return _summed(rng, tool, [said for _, said in drawn.values()])
    if tool.style == "hand" and style < 0.85:
        return rng.choice(HANDED).format(noun=tool.noun)
    if wanted and style > 0.95:
        return _as_code(rng, tool, wanted, drawn)
    if wanted and style > 0.9:
        return _as_statements(rng, tool, wanted, drawn)
    natural = all(a.says for a in wanted) and style < 0.66
    if natural and wanted and rng.random() < 0.1:
        return _fronted(rng, tool, wanted, drawn)
    args = _natural(rng, wanted, drawn) if natural else _keyed(rng, wanted, drawn)
    if natural or style < 0.78:
        templates = {"ask": ASKED, "do": DONE, "bare": BARE}.get(tool.style, WORDED)
    else:
        templates = NAMED if rng.random() < 0.65 else WORDED
    return _filled(rng.choice(templates), tool, args)


def _other(rng: random.Random, argument: Argument, split: Split, drawn: Drawn) -> tuple[Any, str]:
    """A value that no other argument has, so that only one call is right."""
    taken = {said for _, said in drawn.values()}
    for _ in range(5):
        one, said = argument.draw(rng, split)
        if said not in taken:
            break
    return one, said


def _filled(template: str, tool: MadeTool, args: str) -> str:
    spaced = "".join(f" {c.lower()}" if c.isupper() else " " if c in "_-." else c for c in tool.name)
    words = " ".join(spaced.split())
    said = template.format(
        noun=tool.noun,
        Noun=tool.noun.capitalize(),
        verb=tool.verb,
        Verb=tool.verb.capitalize(),
        name=tool.name,
        words=words,
        Words=words.capitalize(),
        args=args,
    )
    for vowel in "aeio":
        said = said.replace(f" a {vowel}", f" an {vowel}")
    return said


def _summed(rng: random.Random, tool: MadeTool, numbers: list[str]) -> str:
    sign, word, _ = SUMS.get(tool.verb, ("and", "and", ""))
    plain = [one for one in SUMMED if sign != "and" or "verb" in one.lower()]
    a, b = numbers
    return rng.choice(plain).format(
        verb=tool.verb, Verb=tool.verb.capitalize(), noun=tool.noun, a=a, b=b, sign=sign, word=word
    )


def _natural(rng: random.Random, wanted: list[Argument], drawn: Drawn) -> str:
    """The arguments as people say them: "in Oslo on Friday"."""
    parts = [rng.choice(a.says).replace("{v}", drawn[a.key][1]) for a in wanted]
    if rng.random() < 0.6:
        rng.shuffle(parts)
    joint = " " if rng.random() < 0.75 else rng.choice([" and ", ", "])
    return " " + joint.join(parts) if parts else ""


def _keyed(rng: random.Random, wanted: list[Argument], drawn: Drawn) -> str:
    """Every value right behind its key, or the value alone where there is only one."""
    if not wanted:
        return ""
    if len(wanted) == 1 and rng.random() < 0.4:
        return rng.choice([" {}", " for {}", " with {}", " on {}"]).format(drawn[wanted[0].key][1])
    form = rng.choice(_KEYED)
    parts = [form.format(w=a.words, k=a.key, v=drawn[a.key][1]) for a in wanted]
    if rng.random() < 0.5:
        rng.shuffle(parts)
    lead = rng.choice([" with ", " with ", " for ", ": ", ", ", " with the "])
    if rng.random() < 0.6 and len(parts) > 1:
        return lead + ", ".join(parts[:-1]) + " and " + parts[-1]
    return lead + ", ".join(parts)


def _as_form(rng: random.Random, tool: MadeTool, wanted: list[Argument], drawn: Drawn) -> str:
    templates = {"ask": ASKED, "do": DONE}.get(tool.style, NAMED)
    return _filled(rng.choice(rng.choice([templates, NAMED])), tool, _keyed(rng, wanted, drawn))


def _as_code(rng: random.Random, tool: MadeTool, wanted: list[Argument], drawn: Drawn) -> str:
    quote = rng.choice(["", '"', "'"])
    values = [drawn[a.key] for a in wanted]
    texts = [said if isinstance(one, (int, float)) else f"{quote}{said}{quote}" for one, said in values]
    if rng.random() < 0.4:
        texts = [f"{a.key}={text}" for a, text in zip(wanted, texts, strict=True)]
    return rng.choice(_CODED).format(f"{tool.name}({', '.join(texts)})")


def _as_statements(rng: random.Random, tool: MadeTool, wanted: list[Argument], drawn: Drawn) -> str:
    head = _filled(rng.choice(STATED), tool, "")
    form = rng.choice(["The {w} is {v}", "Its {w} is {v}", "The {w} should be {v}"])
    parts = [form.format(w=a.words, v=drawn[a.key][1]) for a in wanted]
    rng.shuffle(parts)
    if rng.random() < 0.5:
        return f"{head} {'. '.join(parts)}."
    return f"{head} {' and '.join([parts[0], *(part[0].lower() + part[1:] for part in parts[1:])])}."


def _fronted(rng: random.Random, tool: MadeTool, wanted: list[Argument], drawn: Drawn) -> str:
    """One argument before the rest: "On Friday, book a table for 4 people."."""
    first, *rest = rng.sample(wanted, len(wanted))
    front = rng.choice([said for said in first.says if said[0] != "{"] or [f"With {first.words} {{v}}"])
    front = front.replace("{v}", drawn[first.key][1])
    templates = {"ask": ASKED[:2], "bare": BARE[:4]}.get(tool.style, DONE[:4])
    head = _filled(rng.choice(templates), tool, _natural(rng, rest, drawn))
    return f"{front[0].upper()}{front[1:]}, {head[0].lower()}{head[1:]}"


def draw_result(rng: random.Random, request: Request, split: Split, remarks: list[str]) -> str:
    """What the tool returns: words, a number, JSON, an error, or nothing of interest."""
    noun, kind = request.tool.noun, rng.random()
    if request.tool.style == "sum" and kind < 0.8:
        return str(number(rng, split)) + (f".{rng.randrange(1, 10)}" if rng.random() < 0.2 else "")
    if request.tool.style == "hand" and kind < 0.8:
        return rng.choice(TRANSFERRED).format(noun=noun, Noun=noun.capitalize())
    if kind < 0.25:
        return json.dumps(_fields(rng, noun, split), ensure_ascii=False)
    if 0.33 <= kind < 0.4 and remarks:
        return rng.choice(remarks)
    some = next((str(one) for one in request.arguments.values()), noun)
    word, n, code = value(rng, "word", split), number(rng, split), value(rng, "code", split)
    return rng.choice(FAILED if kind < 0.33 else RETURNED).format(word=word, n=n, code=code, noun=noun, some=some)


def _fields(rng: random.Random, noun: str, split: Split) -> dict[str, Any]:
    keys = rng.sample([noun, value(rng, "word", split), *_FIELDS], rng.choice([1, 2, 2, 3]))
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: number(rng, split),
        lambda: value(rng, "word", split),
        lambda: value(rng, "code", split),
        lambda: value(rng, "name", split),
        lambda: rng.random() < 0.5,
    )
    return {key: rng.choice(kinds)() for key in keys}
