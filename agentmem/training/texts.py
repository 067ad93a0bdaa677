"""Long texts to train and to measure on: documents from files, without what a library printed around them."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentmem.errors import InvalidInput

_BEGIN = re.compile(r"^\*\*\* ?START OF TH[EI]S? PROJECT GUTENBERG.*$", re.MULTILINE)
_END = re.compile(r"^\*\*\* ?END OF TH[EI]S? PROJECT GUTENBERG.*$", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """One text, whose memory never mixes with that of another."""

    name: str
    text: str


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """The documents of some files: one each (.txt, .md; also compressed: .xz), or one per line (.jsonl, key "text").

    Project Gutenberg's licence is left out, and lines that were wrapped are joined: one paragraph, one line.

    Raises:
        InvalidInput: a path that is no such file, is not UTF-8 or holds no text.
    """
    found: list[Document] = []
    for path in paths:
        name, text = path.name.removesuffix(".xz"), _read(path)
        if name.endswith(".jsonl"):
            lines = [line for line in text.splitlines() if line.strip()]
            found += [Document(f"{name}:{number}", _text_of(line, path)) for number, line in enumerate(lines, 1)]
        else:
            found.append(Document(name, unwrapped(text)))
    if empty := [document.name for document in found if not document.text.strip()]:
        raise InvalidInput(f"{len(empty)} documents hold no text, the first is {empty[0]!r}")
    if not found:
        raise InvalidInput("there is no document to read; give at least one file")
    return found


def unwrapped(text: str) -> str:
    """The text between Project Gutenberg's marks (all of it where there are none), one paragraph per line."""
    if (begin := _BEGIN.search(text)) is not None:
        text = text[begin.end() :]
    if (end := _END.search(text)) is not None:
        text = text[: end.start()]
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return "\n".join(filter(None, (" ".join(paragraph.split()) for paragraph in paragraphs)))


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("utf-8-sig")
    except (OSError, lzma.LZMAError) as error:
        raise InvalidInput(f"cannot read {str(path)!r}: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{str(path)!r} is not UTF-8 text: {error}") from error


def _text_of(line: str, path: Path) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{str(path)!r} has a line that is no JSON object with a 'text': {line[:80]!r}") from error
    if not isinstance(text, str):
        raise InvalidInput(f"{str(path)!r} has a line whose 'text' is no string: {line[:80]!r}")
    return text
