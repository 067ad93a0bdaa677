"""Where KV bytes live: up to 256 KiB inline in the database, else one immutable file per payload.

A file is written, fsynced, renamed and its folder fsynced BEFORE the row that names it commits, so no row ever points
at bytes that are not whole. File names are never reused: a reader that holds an old row either reads the old bytes or
finds no file. Unlinking goes through the ``kv_trash`` table, so that a crash between commit and unlink is made good.
(Streams lie in the same folder; their files grow, and have rules of their own: ``streams.py``.)
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from agentmem.errors import StoreError, StoreFull
from agentmem.store.engine import no_space

_log = logging.getLogger("agentmem.store")

INLINE_MAX = 256 * 1024
"""Payloads up to this many bytes live in the database."""

ORPHAN_AGE = 3600.0
"""Seconds after which a file without a row is no write in progress but the remains of a crash."""


@dataclass(frozen=True)
class Payload:
    """The bytes of one memory's KV, whole and checked.

    ``data`` belongs to the caller: nobody else holds this buffer.
    """

    data: bytes | bytearray
    codec: str
    sha256: bytes


@dataclass(frozen=True)
class LoadedKV:
    """What ``load_kv`` found, by memory id."""

    payloads: dict[str, Payload]
    missing: tuple[str, ...]
    """Cold, or not in this scope; or in a bucket that does not answer."""
    damaged: tuple[str, ...]
    """Failed length or checksum, or the file is gone: re-encode from text."""
    foreign: tuple[str, ...]
    """KV of other fingerprints only: re-encode from text."""


class PayloadFiles:
    """The folder ``<db>.kv`` beside the database; ``uri`` is a path within it."""

    def __init__(self, root: Path):
        self.root = root

    def place(self, turn_id: int, memory_id: int, model_key: str) -> str:
        """A fresh uri. Payloads of a turn share a folder, so a turn costs one folder fsync."""
        return f"{turn_id % 256:02x}/{turn_id}/{memory_id}.{model_key}.{secrets.token_hex(6)}.kv"

    def write(self, payloads: Iterable[tuple[str, bytes | bytearray | memoryview]]) -> None:
        """Write (uri, bytes) durably; after an error none of them is left.

        Raises:
            StoreFull: no room.
            StoreError: the folder cannot be written.
        """
        made: list[Path] = []
        folders: set[Path] = set()
        try:
            for uri, data in payloads:
                path = self.root / uri
                try:
                    folders.update(_make_folders(path.parent))
                    _write_file(path, data)
                except FileNotFoundError:  # the folder, or our unfinished file, went with a memory deleted meanwhile
                    folders.update(_make_folders(path.parent))
                    _write_file(path, data)
                made.append(path)
                folders.add(path.parent)
            for folder in folders:
                _sync_folder(folder)
        except OSError as error:
            for path in made:
                with suppress(OSError):  # the sweep will find it
                    path.unlink(missing_ok=True)
            if no_space(error):
                raise StoreFull(f"no room to write KV below {self.root}; free some space and try again") from error
            raise StoreError(f"cannot write KV below {self.root} ({error}); check the folder's permissions") from error

    def read(self, uri: str) -> bytearray | None:
        """The bytes of a file in a buffer of the caller's own; None when there is no such file, or it is unreadable."""
        return next(self.read_many([uri]))

    def read_many(self, uris: Sequence[str]) -> Iterator[bytearray | None]:
        """``read`` of each file, in order. All are asked for at once, so that the disk reads on meanwhile."""
        with ExitStack() as stack:
            files = [self._open(uri, stack) for uri in uris]
            for uri, file in zip(uris, files, strict=True):
                try:
                    yield None if file is None else _read(file)
                except OSError as error:  # KV is a cache: it is encoded anew
                    _log.warning("cannot read %s: %s", uri, error)
                    yield None

    def _open(self, uri: str, stack: ExitStack) -> FileIO | None:
        try:
            file = stack.enter_context((self.root / uri).open("rb", buffering=0))
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("cannot read KV: %s", error)
            return None
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice only
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return file

    def sha256(self, uri: str) -> bytes | None:
        """Digest of a file's bytes, which need not fit into RAM; None when there is no such file."""
        with suppress(FileNotFoundError), (self.root / uri).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
        return None

    def make_folder(self, uri: str) -> Path:
        """The folder of a stream, created when missing.

        Raises:
            StoreError: it cannot be created.
        """
        folder = self.root / uri
        try:
            for changed in _make_folders(folder):
                _sync_folder(changed)
        except OSError as error:
            raise StoreError(f"cannot create {folder} ({error}); check the permissions above it") from error
        return folder

    def unlink(self, *uris: str) -> None:
        """Remove files, or folders with their files, for good: a power loss does not bring them back.

        They may be gone already. Folders that are empty then go too.

        Raises:
            StoreError: one cannot be removed; it is safe to try again.
        """
        try:
            for folder in {self._unlink(uri) for uri in uris}:
                _sync_nearest(folder)
        except OSError as error:
            raise StoreError(f"cannot remove KV below {self.root} ({error}); check the folder's permissions") from error

    def _unlink(self, uri: str) -> Path:
        """Returns the folder whose entries changed."""
        path = self.root / uri
        if path.is_dir():
            for one in self.inside(uri):
                (self.root / one).unlink(missing_ok=True)
            folder = path
        else:
            path.unlink(missing_ok=True)
            folder = path.parent
        with suppress(OSError):  # not empty, or someone else was quicker
            folder.rmdir()
            return folder.parent
        return folder

    def inside(self, uri: str) -> list[str]:
        """Uris of the files in a folder."""
        return [path.relative_to(self.root).as_posix() for path in (self.root / uri).glob("*")]

    def of_memory(self, turn_id: int, memory_id: int) -> list[str]:
        """Uris of every file of a memory, those that a crash left without a row included."""
        folder = self.root / f"{turn_id % 256:02x}/{turn_id}"
        return [path.relative_to(self.root).as_posix() for path in folder.glob(f"{memory_id}.*")]

    def walk(self, older_than: float = 0.0) -> Iterator[str]:
        """Uris of all files, unfinished ones included, but those written within ``older_than`` seconds of now."""
        now = time.time()
        for path in self.root.glob("*/*/*"):
            with suppress(FileNotFoundError):  # unlinked meanwhile
                # Far in the future: written before the clock was set back.
                if abs(now - path.stat().st_mtime) >= older_than:
                    yield path.relative_to(self.root).as_posix()

    def size(self) -> int:
        """Bytes of all files."""
        total = 0
        for path in self.root.glob("*/*/*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total


def _read(file: FileIO) -> bytearray:
    data = bytearray(os.fstat(file.fileno()).st_size)
    view, done = memoryview(data), 0
    while done < len(data) and (count := file.readinto(view[done:])):
        done += count
    return data


def _make_folders(folder: Path) -> list[Path]:
    """Create missing folders; returns those whose entries changed and must be fsynced."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    return [path.parent for path in missing]


def _write_file(path: Path, data: bytes | bytearray | memoryview) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(unfinished, path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def _sync_nearest(folder: Path) -> None:
    """Sync a folder, or the one that is left when another process removed it meanwhile."""
    while True:
        try:
            _sync_folder(folder)
            return
        except FileNotFoundError:
            folder = folder.parent


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
