"""What tests need to happen first, they force: broken calls, and code, which the bundled model does not write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smolagents import Tool
from smolagents.models import MessageRole

from agentmem import MemoryLLM

from smolagents_agentmem_kv import AgentMemModel


class Stepwise(AgentMemModel):
    """Has other options at each step of a run: those of ``steps``, and behind them none."""

    def __init__(self, llm: MemoryLLM, steps: list[dict[str, Any]], **more: Any):
        super().__init__(llm, **more)
        self.steps = steps

    def generate(self, messages: Any, **options: Any) -> Any:
        return super().generate(messages, **options | self.step(messages))

    def generate_stream(self, messages: Any, **options: Any) -> Any:
        return super().generate_stream(messages, **options | self.step(messages))

    def step(self, messages: Any) -> dict[str, Any]:
        done = sum(getattr(one, "role", None) == MessageRole.TOOL_RESPONSE for one in messages)
        return self.steps[done] if done < len(self.steps) else {}


def call(name: str) -> dict[str, Any]:
    """Options that force a call of this tool."""
    return {"tool_choice": {"type": "function", "function": {"name": name}}}


def code(pattern: str) -> dict[str, Any]:
    """Options that force code of this form. The model chooses what the form leaves open."""
    parts = {"thought": {"enum": ["I call a function."]}, "code": {"type": "string", "pattern": f"^{pattern}$"}}
    schema = {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "step", "schema": schema}}}


class Weather(Tool):
    """Asks somebody else."""

    name = "weather"
    description = "The weather in a city."
    inputs = {"city": {"type": "string", "description": "The city."}}  # noqa: RUF012
    output_type = "string"

    def __init__(self, ask: Callable[[str], Any] = lambda city: f"It rains in {city}."):
        super().__init__()
        self.ask = ask

    def forward(self, city: str) -> str:
        return self.ask(city)
