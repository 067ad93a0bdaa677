"""Every recipe behind the server: resent dialogues, and answers that follow an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from server_world import running

from agentmem import MemoryLLM, Scope

DOG = "My dog is called Biscuit."


@pytest.mark.parametrize("recipe", ["parallel", "memory3", "memlong", "infllm"])
def test_a_recipe_is_served(recipe: str, tmp_path: Path) -> None:
    with (
        MemoryLLM(store=tmp_path / "memory.db", recipe=recipe, max_new_tokens=24) as llm,
        running(llm) as server,
    ):
        client = server.openai()
        said: list[Any] = [{"role": "user", "content": DOG}]
        first = client.chat.completions.create(model="bundled", messages=said, user="chat").choices[0].message.content
        said += [{"role": "assistant", "content": first}, {"role": "user", "content": "What is my dog called?"}]
        reply = client.chat.completions.create(model="bundled", messages=said, user="chat")
        assert reply.choices[0].message.content == "Your dog is called Biscuit."
        assert len(llm.store.scope(Scope(user="chat")).list()) == 4
        one = client.responses.create(model="bundled", input=DOG, user="respond")
        two = client.responses.create(
            model="bundled", input="What a lovely day.", previous_response_id=one.id, user="respond"
        )
        other = client.responses.create(
            model="bundled", input="What is my dog called?", previous_response_id=one.id, user="respond"
        )
        assert other.output_text == "Your dog is called Biscuit."
        last = client.responses.create(
            model="bundled", input="What is my dog called?", previous_response_id=two.id, user="respond"
        )
        assert last.output_text == "Your dog is called Biscuit."
