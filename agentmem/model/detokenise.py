"""Token ids -> text, piece by piece: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from typing import Any

from agentmem.model.calls import MARKERS

_REPLACEMENT = "\ufffd"
_MAX_PENDING = 8
"""A character has at most four bytes; after this many tokens an incomplete one will not become whole."""


class Detokeniser:
    """Turns the ids of one answer into text as they come.

    ``push`` returns what can be shown now; ``flush`` returns the rest at the end. The pieces together are the decoded
    text, up to the first stop string.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._hidden = _hidden(tokenizer)
        self._ids: list[int] = []
        self._window = 0
        self._read = 0
        self._held = ""
        self.stopped = False
        self.n_characters = 0
        """Characters of all ids pushed so far, a stop string and what is held back included; whole ones only."""

    def push(self, token: int) -> str:
        """Text that became certain with this id; empty after a stop string."""
        if self.stopped:
            return ""
        self._ids.append(token)
        shown = self._decode(self._window, self._read)
        text = self._decode(self._window, len(self._ids))
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._read < _MAX_PENDING:
            return ""
        # Decoding starts a few ids back, because some tokenizers drop the space before the first word they are given.
        self._window, self._read = self._read, len(self._ids)
        self.n_characters += len(text) - len(shown)
        return self._release(text[len(shown) :])

    def flush(self) -> str:
        """What is still held back; nothing after a stop string."""
        if self.stopped:
            return ""
        shown = self._decode(self._window, self._read)
        rest = self._decode(self._window, len(self._ids))[len(shown) :]
        self._window = self._read = len(self._ids)
        text = self._release(rest)
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _decode(self, start: int, stop: int) -> str:
        ids = self._ids[start:stop]
        if self._hidden is not None:
            ids = [id for id in ids if id not in self._hidden]
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=self._hidden is None, clean_up_tokenization_spaces=False
        )
        return text

    def _release(self, text: str) -> str:
        """Hold back an end that may become a stop string; cut at one that is there."""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), keep, -1):
                if text.endswith(stop[:length]):
                    keep = length
                    break
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _hidden(tokenizer: Any) -> set[int] | None:
    """Special tokens that are no part of the text, where that is not all of them.

    Those that begin or end a call of a tool are text, although some tokenizers (Mistral, Gemma) call them special, and
    so are those that a tokenizer's own response template looks for there.
    """
    template = getattr(tokenizer, "response_template", None) or {}
    looked_for = str(template.get("fields", {}).get("tool_calls", "")).replace("\\", "")
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {id: token.content for id, token in added.items() if token.special}
    hidden = {id for id, text in special.items() if text not in MARKERS and text not in looked_for}
    return hidden if len(hidden) < len(special) else None
