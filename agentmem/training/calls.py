"""Dialogues with tools -> tensors, in the layout of ``batches`` and with the text of the chat template."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentmem.records import Message, Role, ToolCall
from agentmem.training.batches import CHUNK_WEIGHT, CONTEXT, USER_WEIGHT, Batch, Packer, Row, collate
from agentmem.training.pointing import Look
from agentmem.training.turns import Errand

FIXED_WEIGHT = 0.1
"""Loss weight of a token that every call has in its place."""
NAME_WEIGHT, CHOICE_WEIGHT = 3.0, 2.0
"""Loss weights of the first token of a name, and of a value or of what follows one: there the model has to choose.

NAME_WEIGHT is that of a turn's first token, too, where tools are offered: to call or not.
"""


LAST = 800
"""No turn is moved further back behind this position."""


@dataclass(frozen=True)
class Span:
    """The columns of one assistant's turn in its row, and what kind of turn it is."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Laid:
    """A row, the assistant's turns in it, and what its calls are copied from, as ``Pointer`` without the row."""

    row: Row
    spans: list[Span]
    pointers: list[tuple[int, int, int]]


class Calls:
    """Lays dialogues with tools out with one tokenizer, whose chat template has to know tools."""

    def __init__(self, packer: Packer) -> None:
        self._packer = packer

    def value(self, text: str) -> list[int]:
        """Token ids of a value right behind a quotation mark.

        They are those that it has behind a space, as people write it, but for the first: the rest is copied as it is.
        The tokenizer would cut one word in five in other places there.
        """
        first, *rest = self._packer.text(f" {text}")
        return self._packer.text(self._packer.tokenizer.decode([first]).removeprefix(" ")) + rest

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        return str(self._packer.tokenizer.decode(ids))

    def call(self, made: ToolCall) -> tuple[list[int], list[float], dict[str, int]]:
        """Token ids of a call as the template writes it, their loss weights, and where each key and value begins.

        The name begins at "", a key at ``"key`` and its value at ``key``; at ``.key`` a number has its point, or ends.
        """
        ids: list[int] = []
        weights: list[float] = []
        begins: dict[str, int] = {}

        def put(more: list[int], weight: float, first: float = 1.0) -> None:
            ids.extend(more)
            weights.extend([first] + [weight] * (len(more) - 1))

        text = self._packer.text
        put(text(' <tool_call>\n{"name": "'), FIXED_WEIGHT, NAME_WEIGHT)
        begins[""] = len(ids)
        put(text(made.name), 1.0, NAME_WEIGHT)
        put(text('", "arguments": {'), FIXED_WEIGHT)
        for number, (key, value) in enumerate(made.arguments.items()):
            put(text((", " if number else "") + '"'), 1.0, CHOICE_WEIGHT)
            begins[f'"{key}'] = len(ids)
            put(text(key), 1.0)
            if isinstance(value, str):
                put(text('": "'), 1.0, FIXED_WEIGHT)
                begins[key] = len(ids)
                put(self.value(json.dumps(value, ensure_ascii=False)[1:-1]), 1.0, CHOICE_WEIGHT)
                put(text('"'), 1.0)
            else:
                put(text('":'), 1.0, FIXED_WEIGHT)
                begins[key] = len(ids)
                put(digits := text(f" {json.dumps(value)}"), 1.0, CHOICE_WEIGHT)
                begins[f".{key}"] = begins[key] + self._point(digits)
        put(text("}}\n</tool_call><|end|>"), FIXED_WEIGHT, CHOICE_WEIGHT)
        return ids, weights, begins

    def row(self, errand: Errand, rng: random.Random, *, spread: int) -> Laid:
        """Lay one dialogue out, as ``Packer.row`` does."""
        row, text, spans, pointers = Row(), self._packer.text, list[Span](), list[tuple[int, int, int]]()
        chunks = [text(f"[{chunk.role} {chunk.day}] {chunk.text}\n") for chunk in errand.chunks]
        interval = max((len(ids) for ids in chunks), default=0) + rng.choice([0, 0, rng.randint(0, 24)])
        row.put([self._packer.bos], -interval - 1, 0, [0.0])
        for number, ids in enumerate(chunks, 1):
            row.put(ids, -interval, number, [0.0] + [CHUNK_WEIGHT] * (len(ids) - 1))
        row.put([self._packer.bos], 0, CONTEXT, [0.0])
        at = 1
        last = max((n for n, turn in enumerate(errand.turns) if turn.role is Role.USER), default=-1)
        for number, turn in enumerate(errand.turns):
            ids = text(f"<|{turn.role.value}|>")
            weights = [0.0] * len(ids)
            if turn.role is Role.ASSISTANT:
                begun = len(row.columns) + len(ids)
                said, learned, begins = self._answer(turn, number > last)
                if learned[0] and begins:
                    places = self._places(row, errand.turns[last], turn.tool_calls[0])
                    pointers += [
                        (begun + column - 1, places[what], _look(what))
                        for what, column in begins.items()
                        if what in places
                    ]
                if learned[0]:
                    spans.append(Span(_kind(errand.turns, number), begun, begun + len(said)))
            else:
                said = text(f" {turn.content}<|end|>")
                learned = [0.0 if turn.role is Role.SYSTEM else USER_WEIGHT] * len(said)
                if rng.random() < 0.3 and at + spread < LAST:
                    at += rng.randint(0, spread)
            offer = self.offer(errand.tools, turn.content) if number == last else []
            ids, weights = ids + said + offer, weights + learned + [0.0] * len(offer)
            row.put(ids, at, CONTEXT, weights)
            at += len(ids)
        return Laid(row, spans, pointers)

    def _places(self, row: Row, request: Message, made: ToolCall) -> dict[str, int]:
        """The columns from which the parts of a call are copied, by what ``call`` names them."""
        text, ids = self._packer.text, [column[0] for column in row.columns]
        line = next(_spots(ids, text(f"\n{made.name} {{")), -1) + 1
        places = {"": line}
        said = text(f"<|user|> {request.content}<|end|>")
        begun = next(_spots(ids, said), -1)
        for key, value in made.arguments.items():
            places[f'"{key}'] = next(_spots(ids, text(f'"{key}":'), line), -1) + 1
            spoken = value if isinstance(value, str) else json.dumps(value)
            words = text(f" {spoken}")
            if isinstance(value, str) and self.decode(words[:1]) == " ":
                words = words[1:]
            if (at := self._find(said, words)) < 0:
                at = self._find(said, words := text(spoken))  # behind a quotation mark or an equals sign
            if at < 0:
                continue
            places[key] = begun + at
            point = at + self._point(words)
            if not isinstance(value, str) and self.decode(said[point : point + 1]) == ".":
                places[f".{key}"] = begun + point + 1
        return places

    def _find(self, said: list[int], words: list[int]) -> int:
        """Where the words stand last, and not as the beginning of a longer number; -1 where they do not."""
        ends = ((at, self.decode(said[at + len(words) : at + len(words) + 2])) for at in _spots(said, words))
        return next((at for at, behind in ends if not re.match(r"\.?\d", behind)), -1)

    def _point(self, number: list[int]) -> int:
        """Where a number has its point, or ends."""
        return next((at for at, one in enumerate(number) if self.decode([one]) == "."), len(number))

    def _answer(self, turn: Message, offered: bool) -> tuple[list[int], list[float], dict[str, int]]:
        """An assistant's turn, and its weights. A call is learned only where its tool stands in the prompt."""
        if turn.tool_calls:
            ids, weights, begins = self.call(turn.tool_calls[0])
            return ids, weights if offered else [0.0] * len(ids), begins
        ids = self._packer.text(f" {turn.content}<|end|>")
        return ids, [NAME_WEIGHT if offered else 1.0] + [1.0] * (len(ids) - 1), {}

    def offer(self, tools: list[dict[str, Any]], request: str) -> list[int]:
        """Token ids of the tools, as they stand behind the last user's turn."""
        turn, write = {"role": "user", "content": request}, self._packer.tokenizer.apply_chat_template
        written = [str(write([turn], tools=some, tokenize=False)) for some in (tools, None)]
        return self._packer.text(written[0].removeprefix(written[1]))

    def batch(self, errands: list[Errand], rng: random.Random, *, spread: int) -> tuple[Batch, list[list[Span]]]:
        """Pad the dialogues' rows to one length."""
        drawn = [self.row(errand, rng, spread=spread) for errand in errands]
        return collate([laid.row for laid in drawn]), [laid.spans for laid in drawn]


def _look(what: str) -> Look:
    return Look.BEYOND if what.startswith(".") else Look.PART if what else Look.NAME


def _spots(ids: list[int], wanted: list[int], start: int = 0) -> Iterator[int]:
    """Where ``wanted`` stands in ``ids``, from ``start`` on, the last place first."""
    return (at for at in range(len(ids) - len(wanted), start - 1, -1) if ids[at : at + len(wanted)] == wanted)


def _kind(turns: list[Message], number: int) -> str:
    """What an assistant's turn is, for reports."""
    turn = turns[number]
    if turn.tool_calls:
        arguments = turn.tool_calls[0].arguments
        if turn.tool_calls[0].name.startswith(("final_", "return_r", "submit_a")):
            return "final"
        return f"call{min(3, len(arguments))}" + (" again" if turns[number - 1].role is Role.TOOL else "")
    if turns[number - 1].role is Role.TOOL and turns[number - 2].tool_calls:
        return "results" if turn.content.startswith("The results are") else "result"
    return "words"
