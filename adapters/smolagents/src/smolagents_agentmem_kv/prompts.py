"""Prompts for small models: smolagents' own, of 1,800 tokens and more, do not fit into the bundled model's context."""

from __future__ import annotations

from typing import Any

_REST: dict[str, Any] = {
    "planning": {
        "initial_plan": "Write down the steps to do this task: {{task}}",
        "update_plan_pre_messages": "The task is: {{task}}",
        "update_plan_post_messages": "Write down the steps that are left. There are {{remaining_steps}} at most.",
    },
    "managed_agent": {"task": "{{task}}", "report": "{{final_answer}}"},
    "final_answer": {"pre_messages": "Answer the task.", "post_messages": "{{task}}"},
}

SHORT_PROMPTS: Any = {"system_prompt": "{{custom_instructions or 'You are a helpful assistant.'}}", **_REST}
"""``prompt_templates`` of a ``ToolCallingAgent``: what the tools are, the chat template of the model says."""

SHORT_CODE_PROMPTS: Any = {
    "system_prompt": (
        "{{custom_instructions or 'Do the task with Python.'}} Functions:\n"
        "{% for tool in tools.values() %}{{tool.to_code_prompt()}}\n{% endfor %}"
        "{% for agent in managed_agents.values() %}def {{agent.name}}(task: str) -> str\n{% endfor %}"
        "Call final_answer at the end. Write code as {{code_block_opening_tag}}...{{code_block_closing_tag}}"
    ),
    **_REST,
}
"""``prompt_templates`` of a ``CodeAgent``."""
