"""A knowledge base becomes memories: files -> references of at most 128 tokens, embedded, and encoded ahead.

A reference's id is the hash of its text. So what is there already is passed over, a second run adds nothing, and one
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from agentmem.chunking import chunk_text
from agentmem.errors import InvalidInput, NotFound
from agentmem.records import Memory, Role
from agentmem.store import NewMemory, ScopedMemories
from agentmem.text import check_text
from agentmem.writer import Writer

SUFFIXES = (".txt", ".md", ".jsonl")
"""Files that are read. A line of JSON lines is an object whose ``text`` is a document."""
TAG = "reference"
"""Tag of every ingested memory."""
_BATCH = 64

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ingested:
    """What an ingestion found and did, in references. ``documents`` are files, and lines of JSON lines."""

    documents: int
    references: int
    added: int
    encoded: int


@dataclass(frozen=True)
class _Document:
    text: str
    source: str
    line: int | None


@dataclass(frozen=True)
class _Reference:
    id: str
    text: str
    n_tokens: int
    document: _Document


def ingest(
    writer: Writer,
    handle: ScopedMemories,
    paths: Sequence[Path],
    *,
    warm: bool = True,
    advance: Advance = lambda what, done, total: None,
) -> Ingested:
    """Store files, or all files of folders, as references; with ``warm`` their KV too.

    Every file is read and checked before anything is stored. ``advance`` counts characters.

    Raises:
        InvalidInput: a file that is missing, of another kind, not UTF-8, or holds a line that is no document.
    """
    files = find_files(paths)
    documents, total = 0, 0
    for document in _documents(files):
        documents, total = documents + 1, total + len(document.text)
    seen: set[str] = set()
    added = encoded = done = 0
    references = _references(files, writer, seen)
    while batch := list(islice(references, _BATCH)):
        memories = _store(writer, handle, batch)
        added += sum(new for _, new in memories)
        if warm:
            encoded += _encode(writer, handle, [memory for memory, _ in memories])
        done += sum(len(one.text) for one in batch)
        advance("ingesting", min(done, total), total)
    advance("ingesting", total, total)
    return Ingested(documents, len(seen), added, encoded)


def find_files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Files and the names by which memories cite them: relative to the folder that was given.

    Raises:
        InvalidInput: nothing to read there.
    """
    found: list[tuple[Path, str]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise InvalidInput(f"{path} holds no {', '.join(SUFFIXES)} file")
            found += [(file, file.relative_to(path).as_posix()) for file in inside]
        elif not path.is_file():
            raise InvalidInput(f"there is no file or folder {path}")
        elif path.suffix.lower() not in SUFFIXES:
            raise InvalidInput(f"{path} is not one of {', '.join(SUFFIXES)}; convert it to text first")
        else:
            found.append((path, path.name))
    return found


def _documents(files: Sequence[tuple[Path, str]]) -> Iterator[_Document]:
    for path, source in files:
        try:
            if path.suffix.lower() == ".jsonl":
                yield from _lines(path, source)
                continue
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} cannot be read as UTF-8 text: {error}") from error
        if text.strip():
            yield _Document(check_text(text, str(path)), source, None)


def _lines(path: Path, source: str) -> Iterator[_Document]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise InvalidInput(f"line {number} of {path} is not JSON: {error}") from error
            text = entry.get("text") if isinstance(entry, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise InvalidInput(f'line {number} of {path} is not an object with a "text"')
            yield _Document(check_text(text, f"line {number} of {path}"), source, number)


def _references(files: Sequence[tuple[Path, str]], writer: Writer, seen: set[str]) -> Iterator[_Reference]:
    """Every different reference once; ``seen`` collects their ids."""
    for document in _documents(files):
        for chunk in chunk_text(document.text, writer.spans):
            text = chunk.text.strip()
            id = reference_id(text)
            if text and id not in seen:
                seen.add(id)
                yield _Reference(id, text, chunk.n_tokens, document)


def reference_id(text: str) -> str:
    """Id of the memory that holds this reference: 128 bits of the hash of its text."""
    return f"ref-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _store(writer: Writer, handle: ScopedMemories, batch: Sequence[_Reference]) -> list[tuple[Memory, bool]]:
    """The references' memories, and which of them are new."""
    known: dict[str, Memory] = {}
    for one in batch:
        try:
            known[one.id] = handle.get(one.id)
        except NotFound:
            continue
    new = [one for one in batch if one.id not in known]
    if new:
        vectors = writer.embedder.embed([one.text for one in new])
        stored = handle.add([_memory(one, vector) for one, vector in zip(new, vectors, strict=True)])
        known |= {memory.id: memory for memory in stored}
    fresh = {one.id for one in new}
    return [(known[one.id], one.id in fresh) for one in batch]


def _memory(one: _Reference, vector: object) -> NewMemory:
    place = {"source": one.document.source} | ({} if one.document.line is None else {"line": one.document.line})
    return NewMemory(
        id=one.id,
        text=one.text,
        role=Role.SYSTEM,
        # A turn of its own: the text before and after it in the file is a memory like any other.
        turn=one.id,
        n_tokens=one.n_tokens,
        embedding=vector,  # type: ignore[arg-type]  # a row of the embedder's array
        tags=(TAG,),
        meta=place,
    )


def _encode(writer: Writer, handle: ScopedMemories, memories: Sequence[Memory]) -> int:
    """Encode what is cold. Returns how many."""
    warm = handle.kv_digests([memory.id for memory in memories], fingerprint=writer.fingerprint)
    cold = [memory for memory in memories if memory.id not in warm]
    if cold and writer.recipe is not None:
        writer.packing.attach(handle, cold, writer.recipe.encode(writer.model, cold))
    return len(cold)
