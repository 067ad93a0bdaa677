"""Watches, or disturbs, what this process does to the files of a store.

SQLite's calls are met in its VFS: the file methods of the driver's own SQLite are wrapped (the driver's library exports
them; nothing is compiled). The store's own calls are met in ``os``. So the driver and the file system under test are
the real ones. Every call on a file below the folder is noted in order; a ``fault`` may make it fail instead.

Not seen: ``-shm`` (never read after a power loss) and files that are opened by ``io.open`` (exports).
"""

from __future__ import annotations

import ctypes as c
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pysqlite3 import _sqlite3

Op = tuple[Any, ...]
"""("name", path, file) | ("unname", path) | ("rename", path, path) | ("folder", path) | ("unfolder", path)
| ("write", file, offset, bytes) | ("cut", file, size) | ("sync", file) | ("sync_folder", path) | ("mark", text)"""

Fault = Callable[[str], int]
"""Asked before each call ("write", "sync", "name", ...): 0 to let it through, or the errno that it fails with."""

_CREATE, _DELETE_ON_CLOSE = 0x4, 0x8
_FULL, _CANTOPEN = 13, 14
_IOERR = {"write": 778, "sync": 1034, "cut": 1546, "unname": 2570}  # SQLITE_IOERR_* (sqlite.org/rescode.html)

_OPEN = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_void_p, c.c_int, c.c_void_p)
_DELETE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p, c.c_int)
_CLOSE = c.CFUNCTYPE(c.c_int, c.c_void_p)
_WRITE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_int, c.c_int64)
_TRUNCATE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int64)
_SYNC = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int)
_OPEN_FOLDER = c.CFUNCTYPE(c.c_int, c.c_char_p, c.c_void_p)
_SET_CALL = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p, c.c_void_p)
_GET_CALL = c.CFUNCTYPE(c.c_void_p, c.c_void_p, c.c_char_p)


class _Vfs(c.Structure):  # sqlite3_vfs
    _fields_ = (
        [("version", c.c_int), ("file_size", c.c_int), ("longest", c.c_int), ("next", c.c_void_p)]
        + [("name", c.c_char_p), ("data", c.c_void_p), ("open", c.c_void_p), ("delete", c.c_void_p)]
        + [(f"other{n}", c.c_void_p) for n in range(11)]
        + [("set_call", c.c_void_p), ("get_call", c.c_void_p), ("next_call", c.c_void_p)]
    )


class _Methods(c.Structure):  # sqlite3_io_methods
    _fields_ = (
        [("version", c.c_int), ("close", c.c_void_p), ("read", c.c_void_p), ("write", c.c_void_p)]
        + [("truncate", c.c_void_p), ("sync", c.c_void_p)]
        + [(f"other{n}", c.c_void_p) for n in range(13)]
    )


class _File(c.Structure):  # the head of every sqlite3_file
    _fields_ = [("methods", c.POINTER(_Methods))]


_forever: list[object] = []
"""What SQLite holds pointers to."""


class Tap:
    """What was done below ``folder``: ``ops``."""

    def __init__(self, folder: Path, fault: Fault | None = None):
        self.folder = str(folder)
        self.ops: list[Op] = []
        self.fault = fault
        self.errors: list[BaseException] = []
        """Exceptions within SQLite's calls, which cannot be passed through C."""
        self.files: dict[str, int] = {}
        """Number of the file behind each name."""
        self._count = 0
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.name(str(path))
        self.ops.clear()

    def mark(self, text: str) -> None:
        """Note where the caller is."""
        self.ops.append(("mark", text))

    def fails(self, kind: str) -> int:
        """The errno of a fault, or 0."""
        return self.fault(kind) if self.fault is not None else 0

    def watches(self, path: object) -> bool:
        """True for files that outlive a power loss."""
        return isinstance(path, str) and path.startswith(self.folder + "/") and not path.endswith("-shm")

    def name(self, path: str) -> int:
        """The number of the file at a path, which is made now unless it is known."""
        if path not in self.files:
            self._count += 1
            self.files[path] = self._count
            self.ops.append(("name", path, self._count))
        return self.files[path]


@contextmanager
def tapped(folder: Path, fault: Fault | None = None) -> Iterator[Tap]:
    """Watch a folder. Connections that are opened inside must be closed inside."""
    tap = Tap(folder, fault)
    with _sqlite(tap), _os(tap):
        yield tap
    assert tap.errors == [], tap.errors


@contextmanager
def _sqlite(tap: Tap) -> Iterator[None]:
    library = c.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = c.POINTER(_Vfs)
    real = library.sqlite3_vfs_find(None)
    mine = _Vfs.from_buffer_copy(real.contents)
    real_open, real_delete = _OPEN(real.contents.open), _DELETE(real.contents.delete)
    set_call, get_call = _SET_CALL(real.contents.set_call), _GET_CALL(real.contents.get_call)
    real_open_folder = _OPEN_FOLDER(get_call(real, b"openDirectory"))
    folders: list[str] = []
    """Folders that SQLite opened, which it does to sync them, since it was looked at last."""
    opened: dict[int, int] = {}
    """Number of the file behind each handle."""
    methods: dict[int, Any] = {}
    """Our methods, by the address of the real ones."""

    def guarded(function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            try:
                return function(*arguments)
            except BaseException as error:  # noqa: BLE001  # raised again by ``tapped``
                tap.errors.append(error)
                return 1

        return call

    def refusal(kind: str) -> int:
        why = tap.fails(kind)
        if not why:
            return 0
        return _FULL if why == errno.ENOSPC and kind == "write" else _IOERR.get(kind, _CANTOPEN)

    def sync_folders() -> None:
        tap.ops.extend(("sync_folder", folder) for folder in folders)
        folders.clear()

    def x_open(_vfs: int, name: int | None, handle: int, flags: int, out: int) -> int:
        # As an address, not as bytes: SQLite keeps the pointer.
        path = os.fsdecode(c.string_at(name)) if name else None
        watched = tap.watches(path) and not flags & _DELETE_ON_CLOSE
        new = watched and bool(flags & _CREATE) and not os.path.exists(path)
        if new and (why := refusal("name")):
            c.cast(handle, c.POINTER(_File)).contents.methods = None
            return why
        code = real_open(real, name, handle, flags, out)
        if code == 0 and watched:
            opened[handle] = tap.name(path)
            file = c.cast(handle, c.POINTER(_File)).contents
            file.methods = c.pointer(wrapped(file.methods.contents))
        return code

    def wrapped(theirs: _Methods) -> _Methods:
        address = c.addressof(theirs)
        if address in methods:
            return methods[address]
        close, write = _CLOSE(theirs.close), _WRITE(theirs.write)
        truncate, sync = _TRUNCATE(theirs.truncate), _SYNC(theirs.sync)

        def x_close(handle: int) -> int:
            opened.pop(handle, None)
            return close(handle)

        def x_write(handle: int, data: int, length: int, offset: int) -> int:
            why = refusal("write")
            done = length // 2 if why else length
            code = write(handle, data, done, offset) if done else 0
            if code == 0 and done:
                tap.ops.append(("write", opened[handle], offset, c.string_at(data, done)))
            return why or code

        def x_truncate(handle: int, size: int) -> int:
            why = refusal("cut")
            code = why or truncate(handle, size)
            if code == 0:
                tap.ops.append(("cut", opened[handle], size))
            return code

        def x_sync(handle: int, flags: int) -> int:
            code = refusal("sync") or sync(handle, flags)
            if code == 0:
                tap.ops.append(("sync", opened[handle]))
                sync_folders()
            return code

        ours = _Methods.from_buffer_copy(theirs)
        for field, kind, function in (
            ("close", _CLOSE, x_close),
            ("write", _WRITE, x_write),
            ("truncate", _TRUNCATE, x_truncate),
            ("sync", _SYNC, x_sync),
        ):
            callback = kind(guarded(function))
            _forever.append(callback)
            setattr(ours, field, c.cast(callback, c.c_void_p))
        methods[address] = ours
        _forever.append(ours)
        return ours

    def x_delete(_vfs: int, name: bytes, sync_folder: int) -> int:
        path = os.fsdecode(name)
        code = refusal("unname") or real_delete(real, name, sync_folder)
        if code == 0 and tap.files.pop(path, None) is not None:
            tap.ops.append(("unname", path))
        sync_folders()
        return code

    def open_folder(path: bytes, out: int) -> int:
        folders.append(os.path.dirname(os.fsdecode(path)))
        return real_open_folder(path, out)

    callbacks = (_OPEN(guarded(x_open)), _DELETE(guarded(x_delete)), _OPEN_FOLDER(guarded(open_folder)))
    mine.name, mine.next = b"tap", None
    mine.open, mine.delete = c.cast(callbacks[0], c.c_void_p), c.cast(callbacks[1], c.c_void_p)
    _forever.extend([callbacks, mine])
    set_call(real, b"openDirectory", c.cast(callbacks[2], c.c_void_p))
    library.sqlite3_vfs_register(c.byref(mine), 1)
    try:
        yield
    finally:
        library.sqlite3_vfs_unregister(c.byref(mine))
        library.sqlite3_vfs_register(real, 1)
        set_call(real, b"openDirectory", None)
        tap.errors.extend(AssertionError(f"file {file} was left open") for file in opened.values())


@contextmanager
def _os(tap: Tap) -> Iterator[None]:
    handles: dict[int, int | str] = {}
    """What is behind each file descriptor: the number of a file, or the path of a folder."""
    names = ("open", "close", "write", "pwrite", "ftruncate", "fsync", "replace", "unlink", "mkdir", "rmdir")
    real = {name: getattr(os, name) for name in names}

    def refuse(kind: str, path: object = None) -> None:
        if why := tap.fails(kind):
            raise OSError(why, os.strerror(why), path)

    def open_(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        where = os.fspath(path)
        if not tap.watches(where) and where != tap.folder:
            return real["open"](path, flags, mode, **more)
        if flags & os.O_CREAT and where not in tap.files:
            refuse("name", where)
        handle = real["open"](path, flags, mode, **more)
        if os.path.isdir(where):
            handles[handle] = where
        elif flags & (os.O_WRONLY | os.O_RDWR):
            handles[handle] = tap.name(where)
        return handle

    def close(handle: int) -> None:
        handles.pop(handle, None)
        real["close"](handle)

    def pwrite(handle: int, data: Any, offset: int) -> int:
        if handle not in handles:
            return real["pwrite"](handle, data, offset)
        view = memoryview(data).cast("B")
        why = tap.fails("write")
        done = real["pwrite"](handle, view[: len(view) // 2] if why else view, offset)
        tap.ops.append(("write", handles[handle], offset, bytes(view[:done])))
        if why:
            raise OSError(why, os.strerror(why))
        return done

    def write(handle: int, data: Any) -> int:
        if handle not in handles:
            return real["write"](handle, data)
        done = pwrite(handle, data, offset := os.lseek(handle, 0, os.SEEK_CUR))
        os.lseek(handle, offset + done, os.SEEK_SET)
        return done

    def ftruncate(handle: int, size: int) -> None:
        if handle in handles:
            refuse("cut")
        real["ftruncate"](handle, size)
        if handle in handles:
            tap.ops.append(("cut", handles[handle], size))

    def fsync(handle: int) -> None:
        what = handles.get(handle)
        if what is not None:
            refuse("sync")
        real["fsync"](handle)
        if what is not None:
            tap.ops.append(("sync_folder" if isinstance(what, str) else "sync", what))

    def replace(old: Any, new: Any, **more: Any) -> None:
        a, b = os.fspath(old), os.fspath(new)
        if tap.watches(a):
            refuse("rename", a)
        real["replace"](old, new, **more)
        if tap.watches(a):
            tap.files[b] = tap.files.pop(a)
            tap.ops.append(("rename", a, b))

    def simple(name: str, kind: str) -> Callable[..., None]:
        def call(path: Any, *rest: Any, **more: Any) -> None:
            where = os.fspath(path)
            if not tap.watches(where) or more.get("dir_fd") is not None:
                return real[name](path, *rest, **more)
            refuse(kind, where)
            real[name](path, *rest, **more)
            tap.files.pop(where, None)
            tap.ops.append((kind, where))

        return call

    ours = {
        "open": open_,
        "close": close,
        "write": write,
        "pwrite": pwrite,
        "ftruncate": ftruncate,
        "fsync": fsync,
        "replace": replace,
        "unlink": simple("unlink", "unname"),
        "mkdir": simple("mkdir", "folder"),
        "rmdir": simple("rmdir", "unfolder"),
    }
    for name, function in ours.items():
        setattr(os, name, function)
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
