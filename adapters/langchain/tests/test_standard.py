"""LangChain's own suites for chat models and retrievers, on the bundled model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from agentmem import MemoryLLM

from langchain_agentmem_kv import AgentMemRetriever, ChatAgentMem

OPEN: list[MemoryLLM] = []


@pytest.fixture(autouse=True, scope="module")
def _open_llm() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, MemoryLLM(store=f"{folder}/memory.db", window_tokens=900) as llm:
        OPEN.append(llm)
        yield
        OPEN.clear()


class Model:
    @property
    def chat_model_class(self) -> type[ChatAgentMem]:
        return ChatAgentMem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"llm": OPEN[0], "user": uuid4().hex}


class TestUnit(Model, ChatModelUnitTests): ...


class TestIntegration(Model, ChatModelIntegrationTests):
    @pytest.mark.xfail(reason="the bundled model does not copy Chinese: its tokens are single bytes of it", strict=True)
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:
        super().test_unicode_tool_call_integration(model)


class TestRetriever(Model, RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[AgentMemRetriever]:
        return AgentMemRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        for number in range(8):
            text = f"Cup number {number} is for green tea."
            OPEN[0].memories(user="ada").add(text, id=f"cup-{number}")
        return {"llm": OPEN[0], "user": "ada"}

    @property
    def retriever_query_example(self) -> str:
        return "green tea"
