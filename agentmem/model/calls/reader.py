"""An answer to a request with tools: its words as they come, and what it calls once it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

    ``parser`` makes a parser of transformers, where the tokenizer brings a response template; what that cannot read,
    and all answers of other models, are read in the family's form.
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
        held, begun = "", False
        for piece in self._own_words(pieces) if self._parser is None else self._template_words(pieces):
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
        if self._parser is not None:
            try:
                words, calls = self._by_template(text)
            except _UNREADABLE:  # broken, or in another form than the template's
                answer = self._by_form(text)
                return answer if answer.calls or answer.problem else Answer(text, (), "it is not in the model's form")
            return self._checked(text, words.strip(), calls)
        return self._by_form(text)

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

    def _own_words(self, pieces: Iterable[str]) -> Iterator[str]:
        form, held, calling = self._form, "", False
        at_start = True
        for piece in pieces:
            if calling:  # the rest is generated to its end, and not shown
                continue
            held += piece
            if at_start:
                held = held.lstrip()
            if not form.opens_late:
                if not at_start:
                    yield held
                    held = ""
                elif held and not any(o.startswith(held) or held.startswith(o) for o in form.opens):
                    at_start = False
                    yield held
                    held = ""
                continue
            found = [at for at in (held.find(o) for o in form.opens) if at >= 0]
            if found:
                calling = True
                held = held[: min(found)]
                break_at = len(held)
            else:
                longest = (n for o in form.opens for n in range(len(o) - 1, 0, -1) if held.endswith(o[:n]))
                break_at = len(held) - max(longest, default=0)
            if break_at:
                at_start = False
                yield held[:break_at]
            held = "" if calling else held[break_at:]
        if held and (form.opens_late or not held.startswith(form.opens)):
            yield held

    # ------------------------------------------------------------------------------------------------ by the template

    def _template_words(self, pieces: Iterable[str]) -> Iterator[str]:
        assert self._parser is not None
        parser, calling = self._parser(), False
        for piece in pieces:
            if calling:
                continue
            try:
                events = parser.feed(piece)
            except _UNREADABLE:
                calling = True
                continue
            for event in events:
                calling = calling or event["field"] == "tool_calls"
                if not calling and event["field"] == "content" and event["type"] == "region_chunk":
                    yield event["text"]
        if not calling:
            try:
                _, events = parser.finalize()
            except _UNREADABLE:
                return
            for event in events:
                if event["field"] == "tool_calls":
                    return
                if event["field"] == "content" and event["type"] == "region_chunk":
                    yield event["text"]

    def _by_template(self, text: str) -> tuple[str, list[ToolCall]]:
        """Words and calls. Raises one of ``_UNREADABLE`` for what the template cannot read."""
        assert self._parser is not None
        parser = self._parser()
        events = parser.feed(text)
        message, more = parser.finalize()
        said = [e["text"] for e in [*events, *more] if e["field"] == "content" and e["type"] == "region_chunk"]
        given = message.get("tool_calls") or []
        calls = [call_of(one) for one in (given if isinstance(given, list) else [given])]
        words = "".join(said)
        return (words, calls) if words.strip() or calls else (text, [])
