"""Doing a whole unit of work again when the database rolled it back through no fault of the caller."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import tenacity

from agentmem.errors import StoreBusy, StoreUnavailable

P = ParamSpec("P")
R = TypeVar("R")


class RolledBack(StoreBusy):
    """Another writer was quicker. Nothing was changed, and the same may work at the next try.

    Reaches users only as its base, StoreBusy.
    """


class Disconnected(StoreUnavailable):
    """The connection was lost before the commit. Nothing was changed, and the same may work at the next try.

    Reaches users only as its base, StoreUnavailable.
    """


class Patient(Protocol):
    """Whoever knows how long to go on trying."""

    @property
    def patience(self) -> float:
        """Seconds."""


S = TypeVar("S", bound=Patient)


def retried(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Run a method again while it ends in ``RolledBack`` or ``Disconnected``, for ``patience`` seconds.

    Then it is StoreBusy or StoreUnavailable.

    Only for methods that are one unit of work: what they committed before the failure would be done twice.
    """

    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        # A generator can be read once only.
        again = [list(one) if isinstance(one, Iterator) else one for one in args]
        named = {key: list(one) if isinstance(one, Iterator) else one for key, one in kwargs.items()}
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((RolledBack, Disconnected)),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=0.5),
            stop=tenacity.stop_after_delay(self.patience),
            reraise=True,
        )
        try:
            return attempts(method, self, *again, **named)
        except (RolledBack, Disconnected) as error:
            final = StoreBusy if isinstance(error, RolledBack) else StoreUnavailable
            raise final(f"{error} (tried for {self.patience:g} s)") from error

    functools.update_wrapper(call, method)
    return call
