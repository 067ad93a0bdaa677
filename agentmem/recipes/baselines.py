"""What InfLLM is compared with, on the same code path: windows with sinks and no memory, and full attention."""

from __future__ import annotations

from dataclasses import dataclass

from agentmem.model.local import LocalModel
from agentmem.model.stream import StreamPlan, check_plan


@dataclass(frozen=True)
class StreamingLLM:
    """Sinks and a window; positions are places in the cache (arXiv 2309.17453 section 3.2).

    ``n_local`` None: 4,096, at most half of the model's positions, like ``InfLLM``.
    """

    n_init: int = 4
    n_local: int | None = None
    step: int | None = None

    name = "streaming_llm"

    @property
    def identity(self) -> str:
        """All fields."""
        return f"streaming_llm/1 {self.n_init} {self.n_local} {self.step}"

    def check(self, model: LocalModel) -> None:
        """Raise InvalidInput when the window leaves the positions that the model was trained on."""
        check_plan(model, self.plan(model))

    def plan(self, model: LocalModel) -> StreamPlan:
        """The sizes for this model."""
        n_local, step = _window(model, self.n_local, self.step)
        return StreamPlan(n_init=self.n_init, n_local=n_local, step=step, top_k=0, far="before_window")


@dataclass(frozen=True)
class LMInfinite:
    """Sinks and a window; no distance exceeds the window's (arXiv 2308.16137 section 3)."""

    n_init: int = 10
    n_local: int | None = None
    step: int | None = None

    name = "lm_infinite"

    @property
    def identity(self) -> str:
        """All fields."""
        return f"lm_infinite/1 {self.n_init} {self.n_local} {self.step}"

    def check(self, model: LocalModel) -> None:
        """Raise InvalidInput when the window leaves the positions that the model was trained on."""
        check_plan(model, self.plan(model))

    def plan(self, model: LocalModel) -> StreamPlan:
        """The sizes for this model."""
        n_local, step = _window(model, self.n_local, self.step)
        return StreamPlan(n_init=self.n_init, n_local=n_local, step=step, top_k=0)


@dataclass(frozen=True)
class FullAttention:
    """Every token attends to all before it, at its true position: the plain model, also where it was not trained."""

    step: int = 512

    name = "full_attention"

    @property
    def identity(self) -> str:
        """All fields."""
        return f"full_attention/1 {self.step}"

    def check(self, model: LocalModel) -> None:
        """Any model will do; beyond its trained positions it is on its own."""

    def plan(self, model: LocalModel) -> StreamPlan:
        """No window."""
        return StreamPlan(n_init=0, n_local=None, step=self.step, top_k=0)


def _window(model: LocalModel, n_local: int | None, step: int | None) -> tuple[int, int]:
    room = model.max_positions
    near = min(4096, room // 2) if n_local is None else n_local
    return near, min(512, room // 8, near) if step is None else step
