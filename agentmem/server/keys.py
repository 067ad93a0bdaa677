"""API keys: who may reach which scopes. The file holds their hashes, never the keys.

A key is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess, and nothing to stretch.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentmem.errors import InvalidInput
from agentmem.records import Segment

PREFIX = "am-"
"""Every key begins so, which lets scanners for leaked secrets know one."""
ANY = "*"
"""In place of a user or agent: every one."""


class Grant(BaseModel):
    """A user and agent whose memories a key reaches; ``*`` is every one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: Segment = Field(min_length=1)
    agent: Segment = ""

    def covers(self, user: str, agent: str) -> bool:
        """Whether this scope is within the grant. Segments are compared whole."""
        return self.user in (ANY, user) and self.agent in (ANY, agent)


class Key(BaseModel):
    """One key, as the file keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """What logs call it."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    grants: tuple[Grant, ...] = Field(min_length=1)
    """The first one is meant where a request names no user."""
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def covers(self, user: str, agent: str) -> bool:
        """Whether the key reaches this scope."""
        return any(grant.covers(user, agent) for grant in self.grants)

    @property
    def everything(self) -> bool:
        """Whether it reaches every scope there is."""
        return self.covers(ANY, ANY)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key]


class KeyFile:
    """The keys of a server. A change of the file holds from the next request on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._by_hash: dict[str, Key] = {}
        self.keys()

    def keys(self) -> list[Key]:
        """All keys.

        Raises:
            InvalidInput: the file cannot be read.
        """
        try:
            stat = self._path.stat()
            if (stat.st_mtime_ns, stat.st_ino) != self._stamp:
                self._by_hash = {key.sha256: key for key in read_keys(self._path)}
                self._stamp = (stat.st_mtime_ns, stat.st_ino)
        except OSError as error:
            raise InvalidInput(f"cannot read the keys in {self._path}: {error.strerror}") from error
        return list(self._by_hash.values())

    def find(self, token: str) -> Key | None:
        """The key of a token. How long it takes says nothing about other keys: a hash is looked up, not compared."""
        self.keys()
        return self._by_hash.get(hashlib.sha256(token.encode()).hexdigest())


def read_keys(path: Path) -> list[Key]:
    """The keys of a file; none if there is no such file.

    Raises:
        InvalidInput: it is not a file of keys.
    """
    try:
        return _File.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise InvalidInput(f"{path} is not a file of keys: {str(error).splitlines()[0]}") from error


def add_key(path: Path, name: str, grants: Sequence[Grant]) -> str:
    """Make a key, keep its hash in the file, and return the key: it is shown this once.

    Raises:
        InvalidInput: the name is taken or cannot be used, or the file cannot.
    """
    keys = read_keys(path)
    if any(key.name == name for key in keys):
        raise InvalidInput(f"there is a key {name!r} already; remove it first, or choose another name")
    token = PREFIX + secrets.token_urlsafe(32)
    try:
        key = Key(name=name, sha256=hashlib.sha256(token.encode()).hexdigest(), grants=tuple(grants))
    except ValidationError as error:
        raise InvalidInput(f"cannot make a key {name!r}: {error.errors()[0]['msg']}") from error
    _write(path, [*keys, key])
    return token


def remove_key(path: Path, name: str) -> None:
    """Remove a key; who uses it is refused from the next request on.

    Raises:
        InvalidInput: there is none of this name.
    """
    keys = read_keys(path)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        raise InvalidInput(f"there is no key {name!r} in {path}")
    _write(path, left)


def _write(path: Path, keys: list[Key]) -> None:
    """Replace the file as a whole; only its owner may read it."""
    lines = [key.model_dump(mode="json") for key in keys]
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"keys": lines}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
