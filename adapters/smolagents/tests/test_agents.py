"""Agents in real runs: tool calls, code, streams, memory for other models, cancelling, several at once, bad input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from smolagents import ActionStep, CodeAgent, FinalAnswerTool, ToolCallingAgent
from smolagents.models import ChatMessage, MessageRole
from smolagents.utils import AgentError, AgentGenerationError

from agentmem import InvalidInput, MemoryLLM

from forced import Stepwise, Weather, call, code
from smolagents_agentmem_kv import SHORT_CODE_PROMPTS, SHORT_PROMPTS, AgentMemModel, RecallTool, remember

TOLD = "My dog is called Biscuit."
ASKED = "What is my dog called?"
QUESTION = "How is the weather in Lisbon?"


def tool_agent(model: AgentMemModel, *tools: Any, **more: Any) -> ToolCallingAgent:
    options = {"prompt_templates": SHORT_PROMPTS, "verbosity_level": 0, "max_steps": 3} | more
    return ToolCallingAgent(list(tools), model, **options)


def code_agent(model: AgentMemModel, *tools: Any, **more: Any) -> CodeAgent:
    options = {"prompt_templates": SHORT_CODE_PROMPTS, "verbosity_level": 0, "max_steps": 3} | more
    return CodeAgent(list(tools), model, **options)


def stored(llm: MemoryLLM, user: str = "ada") -> list[tuple[str, str]]:
    return [(str(m.role), m.text) for m in llm.memories(user=user).list(sort="created_at", limit=1000)]


def steps(agent: Any) -> list[ActionStep]:
    return [step for step in agent.memory.steps if isinstance(step, ActionStep)]


# ----------------------------------------------------------------------------------------------------------- tool calls


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(llm: MemoryLLM, stream: bool) -> None:
    agent = tool_agent(AgentMemModel(llm, user="ada"), Weather(), stream_outputs=stream)
    answer = agent.run(QUESTION)
    called, answered = steps(agent)
    assert (called.tool_calls[0].name, called.observations) == ("weather", "It rains in Lisbon.")
    assert answered.tool_calls[0].arguments == {"answer": answer}
    assert stored(llm) == [
        ("user", QUESTION),
        ("assistant", 'Calling weather with {"city": "Lisbon"}'),
        ("tool", "It rains in Lisbon."),
        ("assistant", answer),
    ]
    assert agent.memory.get_full_steps()[1]["observations"] == "It rains in Lisbon."
    assert called.token_usage.input_tokens > 0 < called.token_usage.output_tokens


def test_a_final_answer_can_be_a_call(llm: MemoryLLM) -> None:
    class Verdict(FinalAnswerTool):
        inputs = {"answer": {"type": "string", "enum": ["rain", "sun"], "description": "How it is."}}  # noqa: RUF012
        output_type = "string"

    model = Stepwise(llm, [call("weather"), call("final_answer")], user="ada")
    assert tool_agent(model, Weather(), Verdict()).run(QUESTION) in ("rain", "sun")
    required = AgentMemModel(llm, user="bob", tool_choice="required")
    assert tool_agent(required, Verdict()).run(QUESTION) in ("rain", "sun")


def test_the_tool_for_answers_is_offered_where_the_prompt_speaks_of_it(llm: MemoryLLM) -> None:
    def tokens(instructions: str) -> int:
        model = AgentMemModel(llm, user="ada", remember=False)
        agent = tool_agent(model, Weather(), max_steps=1, instructions=instructions)
        agent.run(QUESTION)
        return steps(agent)[0].token_usage.input_tokens

    assert tokens("Use final_answer at the end.") > tokens("Use few words at the end.") + 20


def test_a_broken_call_is_tried_again(llm: MemoryLLM) -> None:
    cut = call("weather") | {"max_new_tokens": 6}
    for stream in (False, True):
        agent = tool_agent(Stepwise(llm, [cut], user="ada", session=f"{stream}"), Weather(), stream_outputs=stream)
        assert agent.run(QUESTION)
        first, second, *_ = steps(agent)
        assert "cut off" in str(first.error)
        assert second.error is None
    with pytest.raises(ValueError, match="JSON"):  # words that are not the model's own newest ones
        AgentMemModel(llm, user="ada").parse_tool_calls(ChatMessage(MessageRole.ASSISTANT, "I look."))


def test_a_run_goes_on_where_it_was(llm: MemoryLLM) -> None:
    agent = tool_agent(AgentMemModel(llm, user="ada"))
    agent.run(TOLD)
    assert agent.run(ASKED, reset=False) == "Your dog is called Biscuit."
    assert [role for role, _ in stored(llm)].count("user") == 2
    assert len(set(stored(llm))) == len(stored(llm))
    assert len({m.scope.session for m in llm.memories(user="ada").list()}) == 1


def test_the_answer_says_what_was_read(llm: MemoryLLM) -> None:
    tool_agent(AgentMemModel(llm, user="ada")).run(TOLD)
    answer = AgentMemModel(llm, user="ada").generate([{"role": "user", "content": ASKED}])
    assert answer.content == "Your dog is called Biscuit."
    assert TOLD in [read.memory.text for read in answer.raw.memories]
    assert answer.token_usage.input_tokens == answer.raw.usage.prompt_tokens + answer.raw.usage.memory_tokens


def test_options_are_heard(llm: MemoryLLM) -> None:
    tool_agent(AgentMemModel(llm, user="ada")).run(TOLD)

    def say(**options: Any) -> str:
        model = AgentMemModel(llm, user="ada", remember=False, **options)
        return model.generate([{"role": "user", "content": ASKED}]).content

    assert say(max_new_tokens=2) == "Your dog"
    assert say(temperature=2.0, seed=7) == say(temperature=2.0, seed=7)
    model = AgentMemModel(llm, user="ada", remember=False)
    assert model.generate([{"role": "user", "content": ASKED}], stop_sequences=["called"]).content == "Your dog is"
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        say(colour="red")
    assert len(stored(llm)) == 2


# ----------------------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize("stream", [False, True])
def test_code_runs_step_by_step(llm: MemoryLLM, stream: bool) -> None:
    asked: list[str] = []
    weather = Weather(lambda city: asked.append(city) or f"It rains in {city}.")
    forms = [code(r"rain = weather\(city='(Lisbon|Oslo)'\)"), code(r"final_answer\((rain|rain\.upper\(\))\)")]
    model = Stepwise(llm, forms, user="ada")
    agent = code_agent(model, weather, use_structured_outputs_internally=True, stream_outputs=stream)
    answer = agent.run(QUESTION)
    assert len(asked) == 1
    assert answer in (f"It rains in {asked[0]}.", f"IT RAINS IN {asked[0].upper()}.")
    assert [step.code_action.split("(")[0] for step in steps(agent)] == ["rain = weather", "final_answer"]
    assert [role for role, _ in stored(llm)] == ["user", "assistant", "tool", "assistant"]


def test_a_model_that_writes_no_code_ends_with_its_steps(llm: MemoryLLM) -> None:
    agent = code_agent(AgentMemModel(llm, user="ada", max_new_tokens=24), Weather(), max_steps=2)
    assert isinstance(agent.run(QUESTION), str)
    assert all(step.error is not None for step in steps(agent)[:2])
    turns = {memory.turn: str(memory.role) for memory in llm.memories(user="ada").list(sort="created_at")}
    assert list(turns.values()) == ["user", "assistant", "tool", "assistant", "tool", "user", "assistant"]


def test_code_that_fails_is_told(llm: MemoryLLM) -> None:
    model = Stepwise(llm, [code(r"import os"), code(r"final_answer\(1\)")], user="ada")
    agent = code_agent(model, use_structured_outputs_internally=True)
    assert agent.run("Count.") == 1
    assert "Import" in str(steps(agent)[0].error)
    assert any(role == "tool" and "Error" in text for role, text in stored(llm))


# ---------------------------------------------------------------------------------------------- memory for other models


def test_a_run_of_another_model_is_remembered_and_recalled(llm: MemoryLLM) -> None:
    other = AgentMemModel(llm, user="nobody", remember=False)  # here stands any model
    agent = tool_agent(other, Weather(), step_callbacks=remember(llm, user="ada"))
    answer = agent.run(QUESTION)
    observed = [step.observations for step in steps(agent)]
    assert stored(llm) == [("user", QUESTION), ("tool", "It rains in Lisbon."), ("tool", answer), ("assistant", answer)]
    assert observed == ["It rains in Lisbon.", answer]
    assert stored(llm, "nobody") == []

    recall = RecallTool(llm, user="ada")
    assert "- It rains in Lisbon." in recall("rains in Lisbon").splitlines()
    assert RecallTool(llm, user="bob")("rains in Lisbon") == "Nothing is remembered about that."
    recall.inputs = {"query": recall.inputs["query"] | {"enum": ["rains in Lisbon"]}}
    agent = tool_agent(Stepwise(llm, [call("recall")], user="nobody", remember=False), recall)
    agent.run(QUESTION)
    assert "It rains in Lisbon." in steps(agent)[0].observations


def test_only_the_newest_run_is_remembered_anew(llm: MemoryLLM) -> None:
    other = AgentMemModel(llm, user="nobody", remember=False)
    agent = tool_agent(other, step_callbacks=remember(llm, user="ada"))
    agent.run(TOLD)
    agent.run("Thank you.", reset=False)
    assert [text for role, text in stored(llm) if role == "user"] == [TOLD, "Thank you."]


# ------------------------------------------------------------------------ agents of agents, cancelling, several at once


def test_an_agent_within_an_agent(llm: MemoryLLM) -> None:
    model = AgentMemModel(llm, user="ada")
    helper = tool_agent(model, name="helper", description="Helps.")
    manager = tool_agent(Stepwise(llm, [call("helper")], user="ada"), managed_agents=[helper])
    helper.inputs = {"task": {"type": "string", "enum": [TOLD], "description": "What to do."}}
    assert manager.run("Ask the helper.")
    assert "Biscuit" in steps(manager)[0].observations
    assert ("user", TOLD) in stored(llm)


def test_an_agent_that_calls_itself_ends(llm: MemoryLLM) -> None:
    agent: ToolCallingAgent
    depth: list[str] = []

    def again(city: str) -> str:
        depth.append(city)
        return tool_agent(model, Weather(again)).run(QUESTION) if len(depth) < 3 else "enough"

    model = Stepwise(llm, [call("weather")], user="ada")
    agent = tool_agent(model, Weather(again))
    assert agent.run(QUESTION)
    assert len(depth) == 3


def test_a_run_that_is_interrupted_can_be_sent_again(llm: MemoryLLM) -> None:
    def stop(step: ActionStep, agent: Any) -> None:
        agent.interrupt()

    model = Stepwise(llm, [call("weather")], user="ada")
    with pytest.raises(AgentError, match="interrupted"):
        tool_agent(model, Weather(), step_callbacks=[stop]).run(QUESTION)
    assert [role for role, _ in stored(llm)] == ["user", "assistant"]
    tool_agent(model, Weather()).run(QUESTION)
    assert [role for role, _ in stored(llm)] == ["user", "assistant", "tool", "assistant"]


def test_two_agents_on_one_session_at_once(llm: MemoryLLM) -> None:
    told = [f"A dog is called {name}." for name in ("Biscuit", "Rex", "Bruno")]
    model = AgentMemModel(llm, user="ada", session="monday")
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda text: str(tool_agent(model).run(text)), told))
    assert sorted(text for role, text in stored(llm) if role == "user") == sorted(told)
    assert sorted(text for role, text in stored(llm) if role == "assistant") == sorted(answers)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("given", [b"\xffrain", 7, None, {"sky": "grey"}])
def test_what_a_tool_gives_is_text_whatever_it_is(llm: MemoryLLM, given: Any) -> None:
    agent = tool_agent(Stepwise(llm, [call("weather")], user="ada"), Weather(lambda city: given))
    agent.run(QUESTION)
    assert [text for role, text in stored(llm) if role == "tool"][:1] == [str(given)]


def test_a_result_longer_than_the_window_is_memory(llm: MemoryLLM) -> None:
    long = "\n".join(f"Drawer {number} holds the keys of house {number}." for number in range(200))
    agent = tool_agent(Stepwise(llm, [call("weather")], user="ada"), Weather(lambda city: long))
    assert agent.run(QUESTION)
    kept = "".join(text for role, text in stored(llm) if role == "tool")
    assert kept.startswith(long)  # behind it, what smolagents says of an answer that it cannot use


def test_a_tool_that_fails_is_told(llm: MemoryLLM) -> None:
    def fail(city: str) -> str:
        raise OSError("no wires")

    agent = tool_agent(Stepwise(llm, [call("weather")], user="ada"), Weather(fail))
    assert agent.run(QUESTION)
    assert "no wires" in str(steps(agent)[0].error)
    assert any(role == "tool" and "no wires" in text for role, text in stored(llm))


def test_two_tools_of_one_name_are_refused(llm: MemoryLLM) -> None:
    model = AgentMemModel(llm, user="ada")
    with pytest.raises(ValueError, match="unique name"):
        tool_agent(model, Weather(), Weather())
    with pytest.raises(InvalidInput, match="two tools"):
        model.generate([{"role": "user", "content": ASKED}], tools_to_call_from=[Weather(), Weather()])
    assert stored(llm) == []


def said(role: MessageRole, text: Any) -> ChatMessage:
    return ChatMessage(role, [{"type": "text", "text": text}] if isinstance(text, str) else text)


def calling(arguments: object, name: str = "gone") -> ChatMessage:
    calls = [{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}]
    return said(MessageRole.TOOL_CALL, f"Calling tools:\n{calls}")


def test_histories_are_taken_as_they_are(llm: MemoryLLM) -> None:
    AgentMemModel(llm, user="ada").generate(
        [
            said(MessageRole.SYSTEM, "Be brief."),
            said(MessageRole.USER, f"New task:\n{QUESTION}"),
            said(MessageRole.ASSISTANT, "I look."),
            calling({"city": 7}),
            said(MessageRole.TOOL_RESPONSE, "Observation:\nIt rains."),
            said(MessageRole.TOOL_RESPONSE, "Observation:\n"),
            said(MessageRole.ASSISTANT, "<code>x = 1</code>"),
            calling("x = 1", "python_interpreter"),
            said(MessageRole.TOOL_CALL, "Calling tools:\n[{'id': "),
            said(MessageRole.TOOL_RESPONSE, "Call id: 1\nError:\nNo."),
        ],
        stop_sequences=["Observation:", "</code>"],
    )
    assert stored(llm)[:-1] == [
        ("user", QUESTION),
        ("assistant", 'I look.\nCalling gone with {"city": 7}'),
        ("tool", "It rains."),
        ("tool", "(nothing)"),
        ("assistant", "<code>x = 1"),
        ("tool", "Call id: 1\nError:\nNo."),
    ]


BAD = [
    [],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "a\0b"}],
    [{"role": "user", "content": b"bytes"}],
    [said(MessageRole.USER, [{"type": "image", "image": object()}])],
    [{"role": "nobody", "content": "hello"}],
]


@pytest.mark.parametrize("messages", BAD)
def test_what_the_model_cannot_read_is_refused(llm: MemoryLLM, messages: Any) -> None:
    with pytest.raises(ValueError):
        AgentMemModel(llm, user="ada").generate(messages)
    assert stored(llm) == []


def test_a_task_that_cannot_be_read_ends_the_run(llm: MemoryLLM) -> None:
    with pytest.raises(AgentGenerationError, match="NUL"):
        tool_agent(AgentMemModel(llm, user="ada")).run("a\0b")
    assert stored(llm) == []


def test_a_saved_agent_says_which_model_it_had(llm: MemoryLLM) -> None:
    plain = tool_agent(AgentMemModel(llm, user="ada", temperature=0.5)).to_dict()
    assert plain["model"] == {"class": "AgentMemModel", "data": {"temperature": 0.5, "model_id": "bundled"}}
