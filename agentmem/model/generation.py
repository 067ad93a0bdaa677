"""One answer being generated: an iterator of text, fed by a worker thread that runs the model's own ``generate``."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from agentmem.errors import InvalidInput
from agentmem.model.attention import Placed
from agentmem.model.constraint import Constraint
from agentmem.model.detokenise import Detokeniser
from agentmem.model.reading import Reader, reading
from agentmem.records import FinishReason


class _Unchanged(Enum):
    UNCHANGED = "unchanged"


UNCHANGED: Final = _Unchanged.UNCHANGED
"""Returned by ``on_stride`` to go on with the memory that is being read."""

OnStride = Callable[[list[int]], Placed | Literal[_Unchanged.UNCHANGED] | None]
"""Called with the ids generated so far, every stride; returns what to read from there on."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 takes the most likely one.

    ``top_p`` keeps the smallest set of tokens that holds this much probability, ``top_k`` the k most likely (0: all).
    With a ``seed`` the answer is the same every time, and torch's global random state is never touched.

    Raises:
        InvalidInput: a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (("temperature", (int, float)), ("top_p", (int, float)), ("top_k", int)):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), kind):
                raise InvalidInput(f"{name} must be a number, not {getattr(self, name)!r}")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise InvalidInput(f"seed must be a whole number or None, not {self.seed!r}")
        if not 0.0 <= self.temperature < float("inf"):
            raise InvalidInput(f"temperature must be 0 or more, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidInput(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise InvalidInput(f"top_k must be 0 (all) or more, got {self.top_k}")


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer: what came of it, and where its attention shares are."""

    end: int
    """Characters of the answer up to and with it. Of a character that takes several tokens, the last one gives it."""
    read: tuple[int, int] | None
    """Stretch and row of ``Generation.shares``; None when nothing was read."""


class Feedable(Protocol):
    """A context that keeps itself: tokens are fed to it, and it gives the logits of the last one (``Stream``)."""

    def attached(self) -> AbstractContextManager[None]:
        """Holds the model meanwhile."""

    def feed(self, ids: Sequence[int], *, last_alone: bool = False) -> Tensor:
        """Logits (vocab,) behind the last of these tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate, checked by ``LocalModel.generate``."""

    prompt_ids: list[int]
    reads: tuple[tuple[int, Placed | None], ...]
    """What each stretch of the prompt reads, by its first token; the answer goes on with the last."""
    on_stride: OnStride | None
    stride: int
    max_new_tokens: int
    sampling: Sampling
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    pad_id: int
    context: Feedable | None = None
    """A context that keeps itself, in place of the model's own cache."""
    constraint: Constraint | None = None
    """What the answer has to follow."""
    cancel: threading.Event = field(default_factory=threading.Event)
    """Set it, from any thread, to stop at the next token."""


@dataclass(eq=False)
class _Run:
    """What worker and consumer share. It holds no reference to Generation, so a dropped Generation ends its run."""

    cancel: threading.Event
    pieces: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)
    token_ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    shares: tuple[tuple[Placed, Tensor], ...] = ()
    error: BaseException | None = None


class Generation:
    """Text pieces as they are generated. Iterate to the end, or ``close()`` to stop; dropping it stops it too.

    Special tokens and stop strings are not part of the text. An error of the model is raised by the iteration.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, lock: AbstractContextManager[Any], request: Request
    ) -> None:
        self._run = _Run(request.cancel)
        self._parts: list[str] = []
        self._thread = threading.Thread(
            target=_work, args=(self._run, model, tokenizer, lock, request), name="agentmem-generate"
        )
        self._finalizer = weakref.finalize(self, self._run.cancel.set)
        self._ended = False
        self._thread.start()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._ended:
            raise StopIteration
        piece = self._run.pieces.get()
        if piece is not None:
            self._parts.append(piece)
            return piece
        self._ended = True
        self._thread.join()
        if self._run.error is not None:
            raise self._run.error
        raise StopIteration

    @property
    def text(self) -> str:
        """All text; waits until the end."""
        for _ in self:
            pass
        return "".join(self._parts)

    @property
    def token_ids(self) -> list[int]:
        """Ids generated so far, without the one that ended the turn."""
        return list(self._run.token_ids)

    @property
    def tokens(self) -> list[Token]:
        """One of each of ``token_ids``; waits until the end."""
        self._wait()
        return list(self._run.tokens)

    @property
    def finish_reason(self) -> FinishReason:
        """``stop`` (end of turn or a stop string), ``length`` or ``cancelled``; waits until the end."""
        self._wait()
        return self._run.finish_reason

    @property
    def shares(self) -> tuple[tuple[Placed, Tensor], ...]:
        """Per stretch between swaps: what was read, and its attention shares (tokens, memories); waits until the end.

        See ``Reader``. Tokens that were generated while nothing was read are in no stretch.
        """
        self._wait()
        return self._run.shares

    def close(self) -> None:
        """Stop at the next token and wait for the worker. What was generated until then stays readable."""
        self._run.cancel.set()
        self._thread.join()

    def _wait(self) -> None:
        self._thread.join()
        if self._run.error is not None:
            raise self._run.error


_COLDEST = 1e-6
"""Least temperature that float32 can divide by; below it one token has all the probability anyway."""


class _Sampler(LogitsProcessor):  # type: ignore[misc]  # transformers is not type-checked here
    """Samples with a generator of its own and leaves only the sampled token possible for the greedy choice after it."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # On the CPU in float32: a seed gives the same draws on any device.
        logits = scores[0].float().cpu()
        probs = ((logits - logits.max()) / max(self._sampling.temperature, _COLDEST)).softmax(-1)
        ranked, order = probs.sort(descending=True)
        if 0 < self._sampling.top_k < len(ranked):
            ranked[self._sampling.top_k :] = 0
        before = ranked.cumsum(0) - ranked
        beyond = before >= self._sampling.top_p * ranked.sum()
        beyond[0] = False  # also where top_p is less than float32 can tell from nothing
        ranked[beyond] = 0
        token = order[torch.multinomial(ranked, 1, generator=self._generator)]
        only = torch.full_like(scores, float("-inf"))
        only[0, token.to(scores.device)] = 0.0
        return only


class _Allowed(LogitsProcessor):  # type: ignore[misc]  # transformers is not type-checked here
    """Leaves only the tokens that a constraint allows."""

    def __init__(self, constraint: Constraint, prompt_tokens: int) -> None:
        self._constraint, self._prompt_tokens = constraint, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._constraint(input_ids[0, self._prompt_tokens :].tolist(), scores)


class _Step(StoppingCriteria):  # type: ignore[misc]  # transformers is not type-checked here
    """Runs after every token: hands out text, stops, and swaps the memory every stride.

    Between two forwards, so ``on_stride`` may itself run the model.
    """

    def __init__(self, run: _Run, request: Request, reader: Reader, detokeniser: Detokeniser) -> None:
        self._run, self._request, self._reader, self._detokeniser = run, request, reader, detokeniser

    @property
    def token_ids(self) -> list[int]:
        """The answer so far."""
        return self._run.token_ids

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: Any) -> Tensor:
        return torch.tensor([self._ends(int(input_ids[0, -1]))], device=input_ids.device)

    def _ends(self, token: int) -> bool:
        run, request = self._run, self._request
        if token in request.stop_ids:
            run.finish_reason = "stop"
            return True
        run.token_ids.append(token)
        piece = self._detokeniser.push(token)
        run.tokens.append(Token(self._detokeniser.n_characters, self._reader.latest))
        if piece:
            run.pieces.put(piece)
        if self._detokeniser.stopped:
            run.finish_reason = "stop"
            return True
        if run.cancel.is_set():
            run.finish_reason = "cancelled"
            return True
        done = len(run.token_ids)
        if request.on_stride is not None and done % request.stride == 0 and done < request.max_new_tokens:
            placed = request.on_stride(list(run.token_ids))
            if placed is not UNCHANGED:
                self._reader.swap(placed)
        return False


def _work(
    run: _Run, model: PreTrainedModel, tokenizer: Any, lock: AbstractContextManager[Any], request: Request
) -> None:
    """Body of the worker thread. Whatever goes wrong is handed to the consumer."""
    try:
        with lock:
            if run.cancel.is_set():
                run.finish_reason = "cancelled"
                return
            detokeniser = Detokeniser(tokenizer, request.stop_strings)
            with reading(model, request.reads[0][1]) as reader:
                step = _Step(run, request, reader, detokeniser)
                if request.context is None:
                    _generate(model, request, reader, step)
                else:
                    _feed(request.context, request, step)
            run.shares = reader.shares
        if rest := detokeniser.flush():
            run.pieces.put(rest)
    except BaseException as error:  # noqa: BLE001  # re-raised in the consumer's thread, KeyboardInterrupt included
        run.error = error
    finally:
        run.pieces.put(None)


def _feed(context: Feedable, request: Request, step: _Step) -> None:
    """Greedy or sampled decoding through a context that keeps itself. The last token is not fed."""
    sampler = _Sampler(request.sampling) if request.sampling.temperature > 0 else None
    with context.attached():
        logits = context.feed(request.prompt_ids, last_alone=True)[None]
        for done in range(1, request.max_new_tokens + 1):
            if request.constraint is not None:
                logits = request.constraint(step.token_ids, logits)
            token = (logits if sampler is None else sampler(logits, logits)).argmax(-1, keepdim=True)
            if bool(step(token, None)[0]) or done == request.max_new_tokens:
                return
            logits = context.feed(token[0].tolist())[None]


def _generate(model: PreTrainedModel, request: Request, reader: Reader, step: _Step) -> None:
    ids = torch.tensor([request.prompt_ids], device=next(model.parameters()).device)
    # A prompt that reads one thing, or nothing at all, stays in one piece: the plain model bit for bit.
    pieces = [read for i, read in enumerate(request.reads) if not i or read[1] is not request.reads[i - 1][1]]
    cache = None
    if len(pieces) > 1:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        with torch.no_grad():
            for (start, placed), (stop, _) in pairwise(pieces):
                reader.swap(placed)
                model.base_model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True)
        reader.swap(pieces[-1][1])
    # Every setting is given, so that a checkpoint's own generation_config (sampling, penalties) changes nothing.
    config = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=sorted(request.stop_ids) or None,
        pad_token_id=request.pad_id,
    )
    processors: list[LogitsProcessor] = []
    if request.constraint is not None:
        processors.append(_Allowed(request.constraint, len(request.prompt_ids)))
    if request.sampling.temperature > 0:
        processors.append(_Sampler(request.sampling))
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        generation_config=config,
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList([step]),
    )
