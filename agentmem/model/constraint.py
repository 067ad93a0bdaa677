"""Answers that follow a grammar: at every step, only tokens that the grammar allows can be chosen.

llguidance reads the grammar (Lark, with JSON schemas inside) and says which tokens may come next; it works with any
tokenizer, and takes a fraction of a millisecond per token. It is the extra ``structured``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agentmem.errors import InvalidInput

if TYPE_CHECKING:
    import llguidance


class Grammars:
    """Grammars over one model's tokens."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        if find_spec("llguidance") is None:
            raise InvalidInput('answers of a given form need more packages: pip install "agentmem-kv[structured]"')
        import llguidance.hf

        self.tokens: llguidance.LLTokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocab_size)

    def check(self, grammar: str) -> None:
        """Raises InvalidInput for a grammar (or a schema inside) that cannot be followed."""
        import llguidance

        if error := llguidance.LLMatcher.validate_grammar(grammar, self.tokens):
            raise InvalidInput(f"an answer cannot be made to follow this schema: {error.splitlines()[0]}")


class Constraint:
    """Follows one answer through its grammar."""

    def __init__(self, grammars: Grammars, grammar: str, stop_ids: frozenset[int]) -> None:
        import llguidance.numpy

        self._matcher = llguidance.LLMatcher(grammars.tokens, grammar)
        self._mask = llguidance.numpy.allocate_token_bitmask(1, grammars.tokens.vocab_size)
        self._fill = llguidance.numpy.fill_next_token_bitmask
        self._stops = sorted(stop_ids)
        self._seen = 0

    def __call__(self, generated: Sequence[int], scores: Tensor) -> Tensor:
        """Scores (1, vocab) with all tokens but the allowed ones at minus infinity.

        ``generated`` is the whole answer so far, as ids.
        """
        self._matcher.consume_tokens(list(generated[self._seen :]))
        self._seen = len(generated)
        out = torch.full_like(scores, float("-inf"))
        if self._matcher.is_stopped():
            out[0, self._stops] = 0.0
            return out
        self._fill(self._matcher, self._mask)
        bits = np.unpackbits(self._mask.view(np.uint8), axis=1, bitorder="little")[0, : scores.shape[1]]
        allowed = torch.from_numpy(np.flatnonzero(bits)).to(scores.device)
        out[0, allowed] = scores[0, allowed]
        return out
