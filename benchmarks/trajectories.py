"""Steps of an agent: calls and results of real trajectories, repeated with fresh values, and facts among them."""

from __future__ import annotations

import json
import lzma
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentmem.training.facts import RELATIONS
from agentmem.training.values import value

FIRST = 3
"""The step whose result holds the first fact."""
TASK = {"role": "user", "content": "Please go through the bookings of today."}
_DIGITS = re.compile(r"\d")


@dataclass(frozen=True)
class Asked:
    """A fact that the result of a step holds: the question, and its one right answer."""

    step: int
    question: str
    answer: str
    value: str


@dataclass(frozen=True)
class Trajectory:
    """Steps, from 1 on: each a call of a tool and its result, in OpenAI's form."""

    steps: list[tuple[dict[str, Any], dict[str, Any]]]
    asked: list[Asked]


def draw(pool: list[tuple[str, str, str]], steps: int, characters: int, seed: int) -> Trajectory:
    """So many steps. Every digit of a result is drawn anew; results are cut after so many characters.

    Facts stand at the beginning of the results of step 3 and of random steps in the first half, each of another kind.
    """
    rng = random.Random(f"trajectory {seed}")
    relations = [relation for relation in RELATIONS if relation.role == "tool"]
    rng.shuffle(relations)
    later = rng.sample(
        range(FIRST + 1, max(steps // 2, FIRST + 2)), min(len(relations) - 1, max(0, steps // 2 - FIRST - 1))
    )
    places = dict(zip([FIRST, *sorted(later)], relations, strict=False))
    made, asked = [], []
    for step in range(1, steps + 1):
        name, arguments, result = pool[(step - 1) % len(pool)]
        text = _DIGITS.sub(lambda _: str(rng.randrange(10)), result[:characters])
        if (relation := places.get(step)) is not None:
            v = value(rng, relation.kind, "heldout")
            text = f"{relation.state[0].format(r=relation.key, v=v)}\n{text}"
            answer = relation.answer.format(r=relation.key, v=v)
            asked.append(Asked(step, relation.ask[0].format(r=relation.key), answer, v))
        call = {"id": f"call-{step}", "type": "function", "function": {"name": name, "arguments": arguments}}
        made.append(
            (
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": text},
            )
        )
    return Trajectory(made, asked)


def read(path: Path) -> list[tuple[str, str, str]]:
    """Tool, arguments and result of every call in a file of trajectories (.json or .json.xz, as tau-bench has them)."""
    data = path.read_bytes()
    found = []
    for one in json.loads(lzma.decompress(data) if path.suffix == ".xz" else data):
        calls: dict[str, dict[str, Any]] = {}
        for message in one["traj"]:
            for call in message.get("tool_calls") or ():
                calls[call["id"]] = call["function"]
            if message["role"] == "tool" and message["content"].strip() and message["tool_call_id"] in calls:
                function = calls[message["tool_call_id"]]
                found.append((function["name"], function["arguments"], message["content"]))
    if not found:
        raise ValueError(f"no tool was called in {path.name}")
    return found
