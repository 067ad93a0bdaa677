"""A disk that loses power: what may be left of the calls that ``disk_tap`` noted.

The rules are POSIX's, stricter than those of most file systems: bytes are safe after an fsync of their file, and a
name (made, removed or changed) after an fsync of its folder, not before. What is not safe may be there, or not, in
any combination; a write that is not safe may be there in part, by sectors of 512 bytes.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from disk_tap import Op

SECTOR = 512
KEPT, DROPPED, TORN = "kept", "dropped", "torn"
"""What happens to what is not safe: all is there (a kill), nothing is, or any part."""


@dataclass
class _File:
    now: bytearray = field(default_factory=bytearray)
    safe: bytearray = field(default_factory=bytearray)
    pending: list[Op] = field(default_factory=list)


class Disk:
    """The folder as of some moment; made before the first call that is to be applied."""

    def __init__(self, folder: Path):
        self.folder = str(folder)
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        self._folders: set[str] = set()
        self._safe_names: dict[str, int] = {}
        self._safe_folders: set[str] = set()
        self._pending: dict[str, list[Op]] = {}
        """Changes of names by folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                self._folders.add(str(path))
            else:  # numbered as the tap does
                self._files[len(self._files) + 1] = _File(bytearray(path.read_bytes()), bytearray(path.read_bytes()))
                self._names[str(path)] = len(self._files)
        self._safe_folders, self._safe_names = set(self._folders), dict(self._names)

    def apply(self, op: Op) -> None:
        """One more call."""
        kind = op[0]
        if kind in ("write", "cut"):
            file = self._files[op[1]]
            _change(file.now, op)
            file.pending.append(op)
        elif kind == "sync":
            file = self._files[op[1]]
            file.safe[:] = file.now
            file.pending.clear()
        elif kind == "sync_folder":
            for change in self._pending.pop(op[1], []):
                _rename(self._safe_names, self._safe_folders, change)
        elif kind != "mark":
            if kind == "name":
                if self._names.get(op[1]) == op[2]:  # was there before
                    return
                self._files[op[2]] = _File()
            _rename(self._names, self._folders, op)
            self._pending.setdefault(os.path.dirname(op[1]), []).append(op)

    def write_out(self, to: Path, what: str, dice: random.Random) -> None:
        """Make ``to`` the folder as a power loss now may leave it."""
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir()
        names, folders = dict(self._safe_names), set(self._safe_folders)
        if what == KEPT:
            names, folders = dict(self._names), set(self._folders)
        elif what == TORN:
            for changes in self._pending.values():
                for change in changes:
                    if dice.random() < 0.5:
                        _rename(names, folders, change)
        for folder in sorted(folders):
            path = to / os.path.relpath(folder, self.folder)
            if path.parent.is_dir():  # else the name of a folder above is lost
                path.mkdir()
        for name, number in names.items():
            path = to / os.path.relpath(name, self.folder)
            if path.parent.is_dir():
                path.write_bytes(self._content(self._files[number], what, dice))

    def _content(self, file: _File, what: str, dice: random.Random) -> bytes:
        if what == KEPT:
            return bytes(file.now)
        content = bytearray(file.safe)
        if what == TORN:
            for op in file.pending:
                if op[0] == "write" and dice.random() < 0.2:
                    for part in _sectors(op):
                        if dice.random() < 0.5:
                            _change(content, part)
                elif dice.random() < 0.5:
                    _change(content, op)
        return bytes(content)


def _sectors(op: Op) -> Iterator[Op]:
    """A write, cut where the sectors of the disk are."""
    kind, file, offset, data = op
    start = 0
    while start < len(data):
        end = start + SECTOR - (offset + start) % SECTOR
        yield kind, file, offset + start, data[start:end]
        start = end


def _change(content: bytearray, op: Op) -> None:
    if op[0] == "cut":
        size = op[2]
        del content[size:]
        content.extend(bytes(size - len(content)))
    else:
        _, _, offset, data = op
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data


def _rename(names: dict[str, int], folders: set[str], op: Op) -> None:
    kind, path = op[:2]
    if kind == "name":
        names[path] = op[2]
    elif kind == "unname":
        names.pop(path, None)
    elif kind == "rename":
        if path in names:
            names[op[2]] = names.pop(path)
    elif kind == "folder":
        folders.add(path)
    else:
        folders.discard(path)
