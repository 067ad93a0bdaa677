"""Made-up tools: names from verbs and nouns, or from nothing, in two splits that share no name and no signature."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

from agentmem.training.arguments import Argument, draw_arguments
from agentmem.training.concepts import ValueKind
from agentmem.training.values import Split, is_heldout, value

Style = Literal["ask", "do", "bare", "sum", "hand"]
"""How a tool is asked for: about a noun, to do something with a noun, by its verb alone, with two numbers, to speak to
someone."""

_ASKING = "get find check show fetch lookup read list query search".split()
_DOING = (
    "book cancel create delete send update order reserve track open close set write schedule rent buy sell pay move "
    "add start stop make change confirm save print share post submit register repair return record remove"
).split()
_NOUNS = (
    "weather forecast table flight order hotel ticket invoice account email note event reminder price stock room car "
    "taxi package alarm light door temperature playlist song recipe meal customer report file page task message "
    "meeting appointment route train bus parcel payment refund balance contact calendar booking product song film "
    "book lesson course exam desk printer camera garden window heater boat bike menu discount coupon visa passport "
    "profile password address phone answer status score rate news time"
).split()
SUMS = {
    "add": ("+", "plus", "sum"),
    "multiply": ("*", "times", "product"),
    "subtract": ("-", "minus", "difference"),
    "divide": ("/", "divided by", "quotient"),
    "power": ("^", "to the power of", "power"),
    "compare": ("and", "against", "larger"),
    "gcd": ("and", "and", "divisor"),
    "modulo": ("%", "modulo", "rest"),
    "average": ("and", "and", "mean"),
}
"""What stands between two numbers, as a sign and as a word, and what comes of them."""
_PAIRS = tuple(
    tuple(pair.split())
    for pair in (
        "a b,x y,first second,num1 num2,left right,first_number second_number,m n,base exponent,value other,p q"
    ).split(",")
)
_DEPARTMENTS = "billing sales support refunds shipping returns booking french spanish legal hr math history".split()
_TAILS = (
    "Use it when the user asks for it.",
    "Returns a short text.",
    "The result is a JSON object.",
    "Only for this company.",
    "Call this at most once.",
    "It works for all of them.",
    "Fails if there is none.",
    "Always up to date.",
)


@dataclass(frozen=True)
class MadeTool:
    """A tool and what is known about how to ask for it."""

    name: str
    style: Style
    verb: str
    noun: str
    arguments: tuple[Argument, ...] = ()
    described: str = ""

    def openai(self) -> dict[str, Any]:
        """The tool as ``tools=`` takes it."""
        parameters: dict[str, Any] = {"type": "object", "properties": {a.key: a.schema() for a in self.arguments}}
        if needed := [a.key for a in self.arguments if a.required]:
            parameters["required"] = needed
        function = {"name": self.name, "description": self.described, "parameters": parameters}
        return {"type": "function", "function": function}


def _cased(rng: random.Random, words: list[str]) -> str:
    kind = rng.random()
    if kind < 0.75:
        return "_".join(words)
    if kind < 0.93:
        return words[0] + "".join(word.capitalize() for word in words[1:])
    return "".join(word.capitalize() for word in words)


def _described(rng: random.Random, verb: str, noun: str, arguments: tuple[Argument, ...]) -> str:
    if rng.random() < 0.25:
        return ""
    third = verb + ("es" if verb.endswith(("s", "sh", "ch", "x", "o")) else "s")
    third = third[:-2] + "ies" if third.endswith("ys") and not third.endswith(("ays", "eys")) else third
    if rng.random() < 0.2:
        where = rng.choice(["in", "for", "of", "by"])
        behind = f" {where} a {arguments[0].words}" if arguments else rng.choice(["", " now", " of today"])
        return f"{rng.choice(['The', 'The current', 'How the', 'All about the'])} {noun}{behind}."
    some = rng.choice([noun, f"the {noun}", f"a {noun}", f"the current {noun}"])
    text = rng.choice([third.capitalize(), verb.capitalize(), f"Use this tool to {verb}", f"Helps to {verb}"])
    text += f" {some}"
    if arguments and rng.random() < 0.4:
        behind = rng.choice(["for a", "for the given", "with a", "by"])
        text += f" {behind} {arguments[0].words}"
    text += rng.choice([".", ".", ""])
    if rng.random() < 0.15:
        text = text.rstrip(".") + ". " + rng.choice(_TAILS)
    return text


def _sum(rng: random.Random, split: Split) -> MadeTool:
    """A tool that takes two numbers."""
    verb = rng.choice([*SUMS, value(rng, "word", split).lower()])
    keys = rng.choice(_PAIRS)
    kind: ValueKind = "count" if rng.random() < 0.67 else "amount"
    name = rng.choice(["{}", "{}_numbers", "{}_two", "my_{}_tool", "calculate_{}", "{}Numbers"]).format(verb)
    noun = SUMS[verb][2] if verb in SUMS else verb
    described = rng.choice(["", "{} two numbers.", f"The {noun} of two numbers.", f"{{}} {keys[0]} and {keys[1]}"])
    arguments = tuple(Argument(key, kind, ()) for key in keys)
    return MadeTool(name, "sum", verb, noun, arguments, described.format(verb.capitalize()))


def _hand(rng: random.Random, split: Split) -> MadeTool:
    """A tool that hands the user over to somebody else."""
    noun = rng.choice([*_DEPARTMENTS, value(rng, "word", split).lower()])
    name = rng.choice(["transfer_to_", "transfer_to_", "handoff_to_", "ask_"])
    name += rng.choice([noun, noun, f"{noun}_agent", f"{noun}_team"])
    described = rng.choice(["", f"Handoff to the {noun} agent to handle the request.", f"Transfer the user to {noun}."])
    return MadeTool(name, "hand", "transfer", noun, (), described)


def _draw(rng: random.Random, split: Split) -> MadeTool:
    kind = rng.random()
    if kind < 0.19:
        return _sum(rng, split) if kind < 0.12 else _hand(rng, split)
    verb = rng.choice(_ASKING if rng.random() < 0.5 else _DOING)
    noun = rng.choice(_NOUNS) if rng.random() < 0.8 else value(rng, "word", split).lower()
    arguments = tuple(draw_arguments(rng, rng.choice([0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4]), split))
    described = _described(rng, verb, noun, arguments)
    shape = rng.random()
    if shape < 0.08 and arguments:
        return MadeTool(verb, "bare", verb, verb, arguments, described if rng.random() < 0.5 else "")
    if shape < 0.68:
        name = _cased(rng, [verb, noun])
    elif shape < 0.78:
        name = _cased(rng, [noun, rng.choice(["tool", "service", "info", "search", "lookup", verb])])
    elif shape < 0.86:
        name = noun
    elif shape < 0.94 or not described:
        name = _cased(rng, [verb, rng.choice(["my", "new", "one", value(rng, "word", split).lower()]), noun])
    else:
        name = value(rng, "word", split).lower() + rng.choice(["", "_tool", "_api"])
    return MadeTool(name, "ask" if verb in _ASKING else "do", verb, noun, arguments, described)


def in_split(tool: MadeTool, split: Split) -> bool:
    """Whether the tool is of the split: held-out tools have a held-out name and, from two on, held-out arguments."""
    keys = ",".join(sorted(a.key for a in tool.arguments)) if len(tool.arguments) > 1 else ""
    if split == "heldout":
        return is_heldout(tool.name) and (not keys or is_heldout(keys))
    return not is_heldout(tool.name) and not (keys and is_heldout(keys))


def draw_tool(rng: random.Random, split: Split) -> MadeTool:
    """A tool of the split."""
    while True:
        if in_split(tool := _draw(rng, split), split):
            return tool


def draw_tools(rng: random.Random, n: int, split: Split) -> list[MadeTool]:
    """n tools that no request can mean alike, in the order of their names, as they are offered."""
    out: dict[str, MadeTool] = {}
    while len(out) < n:
        tool = draw_tool(rng, split)
        if tool.name not in out and all(tool.noun != other.noun for other in out.values()):
            out[tool.name] = tool
    return [out[name] for name in sorted(out)]
