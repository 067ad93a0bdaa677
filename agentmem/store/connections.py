"""What the databases of both engines have in common: being closed, being forked, and errors that become ours."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import sqlalchemy as sa

from agentmem.errors import Closed, StoreBusy, StoreError

_open_databases: weakref.WeakSet[Connections] = weakref.WeakSet()


class Connections(ABC):
    """The connections to one database, called ``name`` in messages."""

    _engine: sa.Engine
    _errors: ClassVar[tuple[type[Exception], ...]] = (sa.exc.DBAPIError,)
    """What ``_translate`` knows."""

    def __init__(self, name: str, lock_timeout: float):
        self.name = name
        self.lock_timeout = lock_timeout
        self._closed = False
        _open_databases.add(self)

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._closed

    def close(self) -> None:
        """Close every connection. Later calls raise Closed; closing twice is fine."""
        self._closed = True
        self._engine.dispose()

    @abstractmethod
    def _translate(self, error: Exception) -> StoreError:
        """The exception that users see for one of ``_errors``."""

    @abstractmethod
    def _forget_parent(self) -> None:
        """In a forked child: drop inherited connections without closing them; they are the parent's."""

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Refuse a closed database; turn driver errors into ours."""
        if self._closed:
            raise Closed(f"{self.name} was closed; open it again with Store.open")
        try:
            yield
        except sa.exc.TimeoutError as error:
            raise StoreBusy(f"every connection to {self.name} is in use ({error}); try again") from error
        except self._errors as error:
            raise self._translate(error) from error


def _after_fork() -> None:
    for database in list(_open_databases):
        database._forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
