"""Dialogues with tools -> tensors, in the layout of ``batches`` and with the text of the chat template."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from agentmem.records import Message, Role, ToolCall
from agentmem.training.batches import CHUNK_WEIGHT, CONTEXT, USER_WEIGHT, Batch, Packer, Row, collate
from agentmem.training.errands import Errand

FIXED_WEIGHT = 0.3
"""Loss weight of a token that every call has in its place."""


LAST = 800
"""No turn is moved further back behind this position."""


@dataclass(frozen=True)
class Span:
    """The columns of one assistant's turn in its row, and what kind of turn it is."""

    kind: str
    start: int
    end: int


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

    def call(self, made: ToolCall) -> tuple[list[int], list[float]]:
        """Token ids of a call as the template writes it, and their loss weights."""
        ids: list[int] = []
        weights: list[float] = []

        def put(more: list[int], weight: float, first: float = 1.0) -> None:
            ids.extend(more)
            weights.extend([first] + [weight] * (len(more) - 1))

        text = self._packer.text
        put(text(' <tool_call>\n{"name": "'), FIXED_WEIGHT)
        put(text(made.name), 1.0)
        put(text('", "arguments": {'), FIXED_WEIGHT)
        for number, (key, value) in enumerate(made.arguments.items()):
            put(text((", " if number else "") + '"'), 1.0)
            put(text(key), 1.0)
            if isinstance(value, str):
                put(text('": "'), 1.0, FIXED_WEIGHT)
                put(self.value(json.dumps(value, ensure_ascii=False)[1:-1]), 1.0)
                put(text('"'), 1.0)
            else:
                put(text(f'": {json.dumps(value)}'), 1.0, FIXED_WEIGHT)
        put(text("}}\n</tool_call><|end|>"), FIXED_WEIGHT)
        return ids, weights

    def row(self, errand: Errand, rng: random.Random, *, spread: int) -> tuple[Row, list[Span]]:
        """Lay one dialogue out, as ``Packer.row`` does; the offer stands before all turns."""
        row, text, spans = Row(), self._packer.text, list[Span]()
        chunks = [text(f"[{chunk.role} {chunk.day}] {chunk.text}\n") for chunk in errand.chunks]
        interval = max((len(ids) for ids in chunks), default=0) + rng.choice([0, 0, rng.randint(0, 24)])
        row.put([self._packer.bos], -interval - 1, 0, [0.0])
        for number, ids in enumerate(chunks, 1):
            row.put(ids, -interval, number, [0.0] + [CHUNK_WEIGHT] * (len(ids) - 1))
        head = self.head(errand.tools)
        row.put(head, 0, CONTEXT, [0.0] * len(head))
        at = len(head)
        for number, turn in enumerate(errand.turns):
            if turn.role is Role.ASSISTANT:
                if turn.tool_calls:
                    ids, weights = self.call(turn.tool_calls[0])
                else:
                    ids = text(f" {turn.content}<|end|>")
                    weights = [1.0] * len(ids)
                begun = text("<|assistant|>")
                start = len(row.columns) + len(begun)
                ids, weights = begun + ids, [0.0] * len(begun) + weights
                spans.append(Span(_kind(errand.turns, number), start, start + len(ids) - len(begun)))
            else:
                ids = text(f"<|{turn.role.value}|> {turn.content}<|end|>")
                weights = [0.0] + [0.0 if turn.role is Role.SYSTEM else USER_WEIGHT] * (len(ids) - 1)
                if rng.random() < 0.3 and at + spread < LAST:
                    at += rng.randint(0, spread)
            row.put(ids, at, CONTEXT, weights)
            at += len(ids)
        return row, spans

    def head(self, tools: list[dict[str, Any]]) -> list[int]:
        """Token ids of what stands before all turns: the beginning of the sequence, and the offer."""
        turn = {"role": "user", "content": "Hello"}  # templates want one
        whole = str(self._packer.tokenizer.apply_chat_template([turn], tools=tools, tokenize=False))
        return self._packer.text(whole.removesuffix("<|user|> Hello<|end|>"))

    def batch(self, errands: list[Errand], rng: random.Random, *, spread: int) -> tuple[Batch, list[list[Span]]]:
        """Pad the dialogues' rows to one length."""
        drawn = [self.row(errand, rng, spread=spread) for errand in errands]
        return collate([row for row, _ in drawn]), [spans for _, spans in drawn]


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
