"""How the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentmem.errors import InvalidInput

_COLDEST = 1e-6
"""Least temperature that float32 can divide by; below it one token has all the probability anyway."""


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


class Sampler:
    """Draws tokens with a generator of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """A token for logits (vocab,)."""
        # On the CPU in float32: a seed gives the same draws on any device.
        logits = logits.float().cpu()
        probs = ((logits - logits.max()) / max(self._sampling.temperature, _COLDEST)).softmax(-1)
        ranked, order = probs.sort(descending=True)
        if 0 < self._sampling.top_k < len(ranked):
            ranked[self._sampling.top_k :] = 0
        before = ranked.cumsum(0) - ranked
        beyond = before >= self._sampling.top_p * ranked.sum()
        beyond[0] = False  # also where top_p is less than float32 can tell from nothing
        ranked[beyond] = 0
        return int(order[torch.multinomial(ranked, 1, generator=self._generator)])
