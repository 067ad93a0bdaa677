"""Drills: short dialogues with tools, each of which teaches one thing in few tokens."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

from agentmem.training.arguments import NUMBERS, Argument, draw_arguments
from agentmem.training.requests import draw_choice, draw_form, draw_request, draw_result
from agentmem.training.toolbox import draw_tools
from agentmem.training.turns import Errand, call, joined, result, user
from agentmem.training.values import Split


def drill_choice(rng: random.Random, split: Split) -> Errand:
    """Several tools without arguments, one or two asked for in few words: the densest lesson in choosing one."""
    tools = [
        replace(tool, arguments=(), described=tool.described if rng.random() < 0.4 else "")
        for tool in draw_tools(rng, rng.randint(2, 5), split)
    ]
    wanted = rng.sample(tools, rng.choice([1, 2]))
    requests = [draw_choice(rng, tool) if rng.random() < 0.7 else draw_request(rng, tool, split) for tool in wanted]
    turns = [user(joined(rng, requests)), call(wanted[0].name, {})]
    for before, request in pairwise(requests):
        turns += [result(draw_result(rng, before, split, [])), call(request.tool.name, {})]
    return Errand([tool.openai() for tool in tools], [], turns)


def drill_form(rng: random.Random, split: Split) -> Errand:
    """One tool of many arguments, and a call of it: the densest lesson in copying values behind their keys."""
    tool = draw_tools(rng, 1, split)[0]
    only = NUMBERS if rng.random() < 0.35 else ()
    keys = draw_arguments(rng, rng.randint(2, 5) if only else rng.randint(3, 8), split, only)
    if only:
        keys = [replace(a, kind=rng.choice(NUMBERS)) for a in keys]
    tool = replace(tool, arguments=tuple(replace(a, required=True) for a in keys), described="")
    request = draw_form(rng, tool, split)
    return Errand([tool.openai()], [], [user(request.said), call(tool.name, request.arguments)])


def drill_pair(rng: random.Random, split: Split) -> Errand:
    """Two numbers that nothing but their order tells apart: the densest lesson in taking each one once."""
    while (tool := draw_tools(rng, 1, split)[0]).style != "sum":
        continue
    first, second = draw_arguments(rng, 2, split, NUMBERS)
    kind = tool.arguments[0].kind
    tool = replace(tool, arguments=tuple(Argument(key, kind, ()) for key in (first.key, second.key)), described="")
    request = draw_request(rng, tool, split)
    return Errand([tool.openai()], [], [user(request.said), call(tool.name, request.arguments)])


def drill_spare(rng: random.Random, split: Split) -> Errand:
    """A tool whose arguments need not all be given, and often are not: the densest lesson in leaving one out."""
    tools = draw_tools(rng, rng.choice([1, 2]), split)
    tool = rng.choice(tools)
    needed = rng.choice([0, 0, 0.4, 0.8])
    keys = draw_arguments(rng, rng.choice([1, 1, 2, 2, 3, 3, 4, 5]), split)
    keys = [replace(a, required=rng.random() < needed) for a in keys]
    style = "do" if tool.style in ("sum", "hand") else tool.style
    spare = replace(tool, arguments=tuple(keys), style=style)
    request = draw_request(rng, spare, split)
    offered = [spare if one is tool else one for one in tools]
    return Errand([one.openai() for one in offered], [], [user(request.said), call(tool.name, request.arguments)])
