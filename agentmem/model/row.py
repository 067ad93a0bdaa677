"""One answer on its way: reads its prompt, chooses its tokens, hands out text, and knows when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from agentmem.model.detokenise import Detokeniser
from agentmem.model.generation import UNCHANGED, Request, Run, Token
from agentmem.model.prefix import Prefix
from agentmem.model.reading import Reader
from agentmem.model.sampling import Sampler


class Row:
    """An answer that the ``Decoder`` generates, alone (``begin`` and ``step``) or in a ``Batch``.

    Alone, its forwards are those of transformers' own ``generate``: with nothing to read, the plain model bit for bit.
    """

    def __init__(self, run: Run, request: Request, model: PreTrainedModel, tokenizer: Any) -> None:
        self.run, self.request = run, request
        self.reader = Reader(model)
        self.cache: DynamicCache | None = None
        """The context, as long as the row is alone."""
        self.token = -1
        """Chosen, and not yet part of the context."""
        self.recalling = False
        """Waits for ``on_stride``; stands still meanwhile."""
        self._found: Any = UNCHANGED
        self._model = model
        self._detokeniser = Detokeniser(tokenizer, request.stop_strings)
        self._sampler = Sampler(request.sampling) if request.sampling.temperature > 0 else None

    @property
    def n_tokens(self) -> int:
        """Tokens of the context: the prompt, and all of the answer but ``token``."""
        return len(self.request.prompt_ids) + len(self.run.token_ids) - 1

    # ------------------------------------------------------------------------------------------------ forwards, alone

    @torch.no_grad()
    def begin(self) -> Tensor:
        """Read the prompt. Logits (vocab,) behind it."""
        request = self.request
        if request.context is not None:
            return request.context.feed(request.prompt_ids, last_alone=True)
        model = self._model
        ids = torch.tensor([request.prompt_ids], device=model.device)
        self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        # What stands before the first memory that is read depends on nothing but itself.
        quiet = request.reads[1][0] if len(request.reads) > 1 and request.reads[0][1] is None else 0
        begun = 0 if request.begun is None else request.begun.begin(self.cache, request.prompt_ids[:quiet])
        # A prompt that reads one thing, or nothing at all, stays in one piece: the plain model bit for bit.
        pieces = [read for i, read in enumerate(request.reads) if not i or read[1] is not request.reads[i - 1][1]]
        for (start, placed), (stop, _) in pairwise(pieces):
            if begun < stop:
                self.reader.read(placed)
                with self.reader.attached():
                    rest = ids[:, max(start, begun) : stop]
                    model.base_model(input_ids=rest, past_key_values=self.cache, use_cache=True)
        self.reader.read(pieces[-1][1])
        logits = self._forward(ids[:, max(pieces[-1][0], begun) :])
        self.run.prefix = Prefix.of(request.prompt_ids[:quiet], self.cache, model)
        return logits

    @torch.no_grad()
    def step(self) -> Tensor:
        """Feed ``token``. Logits (vocab,) behind it."""
        if self.request.context is not None:
            return self.request.context.feed([self.token])
        return self._forward(torch.tensor([[self.token]], device=self._model.device))

    def _forward(self, ids: Tensor) -> Tensor:
        with self.reader.attached():
            logits: Tensor = self._model(
                input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            ).logits[0, -1]
        return logits

    # ------------------------------------------------------------------------------------------------ tokens and text

    def take(self, logits: Tensor, likeliest: int) -> bool:
        """Choose a token from logits (vocab,), of which ``likeliest`` is the greatest. True: the answer ends."""
        run, request = self.run, self.request
        if request.constraint is not None:
            logits = request.constraint(run.token_ids, logits[None])[0]
            likeliest = int(logits.argmax())
        self.token = likeliest if self._sampler is None else self._sampler(logits)
        if self.token in request.stop_ids:
            run.finish_reason = "stop"
            return True
        run.token_ids.append(self.token)
        piece = self._detokeniser.push(self.token)
        run.tokens.append(Token(self._detokeniser.n_characters, self.reader.latest))
        if piece:
            run.pieces.put(piece)
        if self._detokeniser.stopped:
            run.finish_reason = "stop"
            return True
        return len(run.token_ids) == request.max_new_tokens

    def end(self, error: BaseException | None = None) -> None:
        """Tell the consumer that nothing more comes."""
        run = self.run
        run.error = run.error or error
        if rest := self._detokeniser.flush():
            run.pieces.put(rest)
        run.shares = self.reader.shares
        run.ended.set()
        run.pieces.put(None)

    # ------------------------------------------------------------------------------------------------ memory

    def recall(self, done: Callable[[], None]) -> None:
        """Ask ``on_stride`` what to read, if it is time: in a thread of its own, beside the other answers.

        ``done`` is called at its end; then ``settle`` takes what was found.
        """
        request, ids = self.request, list(self.run.token_ids)
        if request.on_stride is None or len(ids) % request.stride:
            return
        on_stride = request.on_stride
        self.recalling = True

        def ask() -> None:
            try:
                self._found = on_stride(ids)
            except BaseException as error:  # noqa: BLE001  # re-raised in the consumer's thread
                self.run.error = error
            done()

        threading.Thread(target=ask, name="agentmem-recall").start()

    def settle(self) -> bool:
        """Take what was recalled. True where something else is to be read from here on."""
        self.recalling = False
        found, self._found = self._found, UNCHANGED
        if found is UNCHANGED:
            return False
        self.reader.read(found)
        return True
