"""A bot that remembers across processes: ``python bot.py STORE USER TEXT``, today and tomorrow."""

import sys
from typing import TypedDict
from uuid import uuid4

from langgraph.graph import START, StateGraph
from langgraph.store.base import BaseStore

from agentmem import MemoryLLM

from langgraph_agentmem_kv import AgentMemStore


class State(TypedDict):
    """What the graph passes on."""

    said: str
    answer: str


def build(llm: MemoryLLM, user: str):
    """A graph of one node: the bundled model answers, reading what is in the store by attention."""

    def answer(state: State, *, store: BaseStore) -> State:
        reply = llm.conversation(user=user).chat(state["said"], remember=False)
        store.put(("said",), uuid4().hex, {"text": state["said"]})
        return {**state, "answer": reply.text}

    graph = StateGraph(State)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile(store=AgentMemStore(llm, user=user))


if __name__ == "__main__":
    path, user, text = sys.argv[1:]
    with MemoryLLM(store=path) as llm:
        print(build(llm, user).invoke({"said": text, "answer": ""})["answer"])
