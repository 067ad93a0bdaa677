"""An answer to a request with tools: its words as they come, and what it calls once it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from pydantic import ValidationError

from agentmem.model.calls.base import CallForm, call_of, fit
from agentmem.records import ToolCall

_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What a response template may raise on text that it was not made for."""


@dataclass(frozen=True)
class Answer:
    """A whole answer, read."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    problem: str = ""
    """Why what looks like a call of a tool is none; ``text`` is then all that the model said."""


class AnswerReader:
    """Reads answers of one model to requests with these tools.

    ``parser`` makes a parser of transformers, where the tokenizer brings a response template; answers of other models
    are read in the family's form.
    """

    def __init__(
        self, form: CallForm, tools: Sequence[Mapping[str, Any]], parser: Callable[[], Any] | None = None
    ) -> None:
        self._form, self._parser = form, parser
        self._tools = {tool["function"]["name"]: tool["function"] for tool in tools}

    def words(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces up to where a call begins; they are the beginning of what ``read`` gives as text.

        What could be the beginning of a call is held back until it is none, white space until words follow it.
        """
        if self._parser is not None:
            spoken = self._template_words(pieces)
        else:
            spoken = self._words_before(pieces) if self._form.opens_late else self._words_or_call(pieces)
        held, begun = "", False
        for piece in spoken:
            held += piece if begun else piece.lstrip()
            if shown := held.rstrip():
                held, begun = held[len(shown) :], True
                yield shown

    def read(self, text: str) -> Answer:
        """The words and the calls of a whole answer. Never raises."""
        answer = self._read(text)
        if not answer.problem or self._parser is None:
            return answer
        # A template leaves thoughts out of the words; what was shown until the call stays the beginning.
        shown = "".join(self.words([text]))
        at = text.find(shown)
        return replace(answer, text=text[at:].strip() if at >= 0 else f"{shown}\n{text}")

    def _read(self, text: str) -> Answer:
        if self._parser is None:
            return self._by_form(text)
        try:
            words, calls = self._by_template(text)
        except _UNREADABLE:
            return Answer(text, (), "it is not in the model's form")
        return self._checked(text, words.strip(), calls)

    # ------------------------------------------------------------------------------------------------ in its own form

    def _by_form(self, text: str) -> Answer:
        form = self._form
        if not (any(o in text for o in form.opens) if form.opens_late else text.lstrip().startswith(form.opens)):
            return Answer(text)
        try:
            words, calls = form.read(text)
        except ValidationError as error:
            return Answer(text, (), str(error.errors()[0]["msg"]))
        except ValueError as error:
            return Answer(text, (), str(error))
        return self._checked(text, words.strip(), calls)

    def _checked(self, text: str, words: str, calls: Sequence[ToolCall]) -> Answer:
        for call in calls:
            if call.name not in self._tools:
                return Answer(text, (), f"there is no tool {call.name!r} in this request")
        fitted = [
            call.model_copy(update={"arguments": fit(call.arguments, self._tools[call.name]["parameters"])})
            for call in calls
        ]
        return Answer(words, tuple(fitted))

    def _words_before(self, pieces: Iterable[str]) -> Iterator[str]:
        """Where a call may stand behind words: the pieces up to it."""
        opens, held, calling = self._form.opens, "", False
        for piece in pieces:
            if calling:  # the rest is generated to its end, and not shown
                continue
            held += piece
            found = [at for at in map(held.find, opens) if at >= 0]
            begun = max((n for o in opens for n in range(1, len(o)) if held.endswith(o[:n])), default=0)
            end = min(found) if found else len(held) - begun
            if end:
                yield held[:end]
            calling, held = bool(found), held[end:]
        if held and not calling:
            yield held

    def _words_or_call(self, pieces: Iterable[str]) -> Iterator[str]:
        """Where an answer is a call from its first character on, or none: all pieces, or nothing."""
        opens, held, words = self._form.opens, "", False
        for piece in pieces:
            held = held + piece if words else (held + piece).lstrip()
            words = words or not any(o.startswith(held) or held.startswith(o) for o in opens)
            if words and held:
                yield held
                held = ""
        if held and not held.startswith(opens):
            yield held

    # ------------------------------------------------------------------------------------------------ by the template

    def _template_words(self, pieces: Iterable[str]) -> Iterator[str]:
        assert self._parser is not None
        parser = self._parser()
        # One character at a time: what a broken call raises then takes no words before it along.
        for character in chain.from_iterable(pieces):
            if parser is None:  # the rest is generated to its end, and not shown
                continue
            try:
                events = parser.feed(character)
            except _UNREADABLE:
                parser = None
                continue
            yield from _content(events)
            if any(event["field"] == "tool_calls" for event in events):
                parser = None
        if parser is not None:
            try:
                _, events = parser.finalize()
            except _UNREADABLE:
                return
            yield from _content(events)

    def _by_template(self, text: str) -> tuple[str, list[ToolCall]]:
        """Words and calls. Raises one of ``_UNREADABLE`` for what the template cannot read."""
        assert self._parser is not None
        parser = self._parser()
        events = parser.feed(text)
        message, more = parser.finalize()
        given = message.get("tool_calls") or []
        calls = [call_of(one) for one in (given if isinstance(given, list) else [given])]
        words = "".join(_content([*events, *more]))
        return (words, calls) if words.strip() or calls else (text, [])


def _content(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """The words in what a parser of transformers tells."""
    return [e["text"] for e in events if e["field"] == "content" and e["type"] == "region_chunk"]
