"""Documents as histories: chunks of at most 128 tokens, read one after the other through a short window.

Tuning and measuring share this, so that both see what a model sees at work: the newest chunk is predicted from the
tokens of a local window, and whatever that window does not show whole is memory. Each document is a history of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.chunking import chunk_text
from agentmem.errors import InvalidInput
from agentmem.model.local import LocalModel
from agentmem.training.texts import Document


@dataclass(frozen=True)
class Window:
    """What is in context when one chunk is predicted.

    ``context`` are the token ids before the chunk (the prefix not included), ``scored`` those of the chunk.
    ``hidden`` is the number of chunks from the history's start that the window does not show, or not whole.
    """

    context: tuple[int, ...]
    scored: tuple[int, ...]
    hidden: int


@dataclass(frozen=True)
class History:
    """A document's chunks: ``texts[i]`` and its token ids ``chunks[i]``."""

    name: str
    texts: tuple[str, ...]
    chunks: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(map(len, self.chunks))

    def window(self, number: int, size: int) -> Window:
        """The window in which chunk ``number`` is predicted: at most ``size`` tokens, the chunk included."""
        room = size - len(self.chunks[number])
        context: list[int] = []
        hidden = number
        while hidden > 0 and len(context) + len(self.chunks[hidden - 1]) <= room:
            hidden -= 1
            context[:0] = self.chunks[hidden]
        if hidden > 0 and len(context) < room:
            context[:0] = self.chunks[hidden - 1][len(context) - room :]
        return Window(tuple(context), self.chunks[number], hidden)

    def pieces(self, tokens: int) -> list[History]:
        """Consecutive histories of at most, and nearly, ``tokens`` tokens; the rest at the end is left out."""
        found, start, used = [], 0, 0
        for stop, chunk in enumerate(self.chunks):
            if used + len(chunk) > tokens:
                found.append(History(f"{self.name}@{start}", self.texts[start:stop], self.chunks[start:stop]))
                start, used = stop, 0
            used += len(chunk)
        return found


def cut(documents: Sequence[Document], model: LocalModel) -> list[History]:
    """The documents' chunks, as they would be stored.

    Raises:
        InvalidInput: a document that is less than two chunks long, so that nothing could be recalled.
    """

    def spans(text: str) -> list[tuple[int, int]]:
        encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(start, end) for start, end in encoded["offset_mapping"]]

    found = []
    for document in documents:
        texts = tuple(chunk.text for chunk in chunk_text(document.text, spans))
        if len(texts) < 2:
            raise InvalidInput(f"document {document.name!r} is one chunk long: there is nothing to remember in it")
        found.append(History(document.name, texts, tuple(tuple(model.chat.encode(text)) for text in texts)))
    return found
