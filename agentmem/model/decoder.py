"""The answers that one model generates at the same time, and the thread that generates them."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from agentmem.model.batch import Batch, can_batch
from agentmem.model.generation import Request, Run
from agentmem.model.lock import FairLock
from agentmem.model.row import Row

ROWS = 32
"""Answers that are generated at once; more wait. It bounds the KV of contexts that is held."""


class Decoder:
    """Generates answers, several at once: a step of each of them in turn, and one step for all that a batch can hold.

    An answer that comes reads its prompt between two steps of the others and goes on with them. The model's lock is
    held for one prompt or one step, so whoever else waits for the model gets it then. An answer that is alone, or that
    no batch can hold (a stream; a model whose batched step is not what it computes alone), is decoded by itself.

    The thread lives as long as there is something to generate.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, lock: FairLock) -> None:
        self._model, self._tokenizer, self._lock = model, tokenizer, lock
        self._changed = threading.Condition()
        self._coming: deque[Row] = deque()
        self._recalled: list[Row] = []
        self._thread: threading.Thread | None = None
        self._alone: list[Row] = []
        self._together: list[Row] = []
        """Rows of the batch, by their place in it."""
        self._batch = Batch(model)
        self._fits: bool | None = None

    def submit(self, run: Run, request: Request) -> None:
        """Generate an answer; the outcome is told to ``run``."""
        row = Row(run, request, self._model, self._tokenizer)
        with self._changed:
            self._coming.append(row)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="agentmem-generate")
                self._thread.start()

    # ------------------------------------------------------------------------------------------------ the thread

    @property
    def _rows(self) -> list[Row]:
        return [*self._together, *self._alone]

    def _work(self) -> None:
        while self._wait():
            try:
                self._round()
            except BaseException as error:  # noqa: BLE001  # of a forward for all of them; re-raised by consumers
                self._fail(error)

    def _wait(self) -> bool:
        """Wait until there is something to do. False: there is nothing left, and the thread ends."""
        with self._changed:
            while True:
                rows = self._rows
                if self._recalled or any(not row.recalling for row in rows):
                    return True
                if self._coming and len(rows) < ROWS:
                    return True
                if not rows:
                    self._thread = None
                    return False
                self._changed.wait()

    def _round(self) -> None:
        """One answer more, if one waits, and one step of every answer that can go on."""
        with self._changed:
            recalled, self._recalled = self._recalled, []
            gone = [row for row in self._coming if row.run.cancel.is_set()]
            for row in gone:
                self._coming.remove(row)
            new = self._coming.popleft() if self._coming and len(self._rows) < ROWS else None
            if new is not None:  # before anything can fail: who is nowhere would never be told
                self._alone.append(new)
        gone += [row for row in self._rows if row.run.cancel.is_set() and not row.recalling]
        for row in gone:
            row.run.finish_reason = "cancelled"
            self._finish(row)
        for row in recalled:
            if row.settle() and row in self._together:
                self._batch.read(self._together.index(row), row.reader.placed)
        for row in self._rows:
            if row.run.error is not None and not row.recalling:  # its recall failed
                self._finish(row)
        if new is not None and new in self._alone:
            self._advance(new, first=True)
        self._gather()
        self._step()
        for row in [row for row in self._alone if row is not new and not row.recalling]:
            self._advance(row, first=False)

    def _advance(self, row: Row, *, first: bool) -> None:
        """One forward of a row by itself."""
        try:
            with self._lock:
                if row.run.cancel.is_set():
                    return  # the next round ends it
                logits = row.begin() if first else row.step()
            self._take(row, logits, int(logits.argmax()))
        except BaseException as error:  # noqa: BLE001  # re-raised in the consumer's thread
            self._finish(row, error)

    def _step(self) -> None:
        """One forward of the batch."""
        going = [not row.recalling for row in self._together]
        if not any(going):
            return
        with self._lock:
            logits, shares = self._batch.step([row.token for row in self._together], going)
        likeliest = logits.argmax(-1).tolist()
        for place, row in enumerate(list(self._together)):
            if not going[place]:
                continue
            if (share := shares[place]) is not None:
                row.reader.add(share)
            try:
                self._take(row, logits[place], likeliest[place])
            except BaseException as error:  # noqa: BLE001  # re-raised in the consumer's thread
                self._finish(row, error)

    def _take(self, row: Row, logits: Tensor, likeliest: int) -> None:
        if row.take(logits, likeliest):
            self._finish(row)
        else:
            row.recall(lambda: self._wake(row))

    def _wake(self, row: Row) -> None:
        with self._changed:
            self._recalled.append(row)
            self._changed.notify()

    # ------------------------------------------------------------------------------------------------ who is where

    def _gather(self) -> None:
        """Let rows that are alone join the batch, where it is worth it."""
        ready = [row for row in self._alone if row.cache is not None and not row.recalling and row.token >= 0]
        if len(ready) + len(self._together) < 2 or not ready:
            return
        if self._fits is None:
            with self._lock:
                self._fits = can_batch(self._model)
        if not self._fits:
            return
        for row in ready:
            assert row.cache is not None
            self._batch.join(row.cache, row.n_tokens, row.reader.placed)
            row.cache = None
            self._alone.remove(row)
            self._together.append(row)

    def _finish(self, row: Row, error: BaseException | None = None) -> None:
        if row in self._together:
            place = self._together.index(row)
            self._batch.leave(place)
            last = self._together.pop()
            if last is not row:
                self._together[place] = last
        elif row in self._alone:
            self._alone.remove(row)
        row.end(error)

    def _fail(self, error: BaseException) -> None:
        """Every answer on its way fails; what comes later begins anew."""
        rows, self._alone, self._together = self._rows, [], []
        self._batch = Batch(self._model)
        with self._changed:
            self._recalled = []
        for row in rows:
            row.end(error)
