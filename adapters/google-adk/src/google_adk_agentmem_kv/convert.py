"""ADK's requests as ``Conversation`` takes them, and replies as ADK takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.genai import types
from pydantic import TypeAdapter

from agentmem import InvalidInput, Reply

_CHOICES = {"ANY": "required", "NONE": "none"}
_FINISHED = {"length": types.FinishReason.MAX_TOKENS, "broken_call": types.FinishReason.MALFORMED_FUNCTION_CALL}
_PASSED_OVER = {"thought_signature", "part_metadata"}


def to_messages(request: LlmRequest) -> list[dict[str, Any]]:
    """The dialogue in OpenAI's form, instructions in front.

    Raises:
        InvalidInput: something in a message that is no text.
    """
    instruction = request.config.system_instruction
    texts = [instruction] if isinstance(instruction, str) else [text_of(instruction)]
    messages: list[dict[str, Any]] = [{"role": "system", "content": text} for text in texts if text]
    for content in request.contents:
        messages += _messages(content)
    return messages


def _messages(content: types.Content) -> list[dict[str, Any]]:
    """A content as messages: the results of tools first, each its own, then what is said and called."""
    results, calls = [], []
    for part in content.parts or []:
        if part.function_response is not None:
            answer = part.function_response
            results.append({"role": "tool", "tool_call_id": answer.id, "content": _result(answer.response)})
        if part.function_call is not None:
            call = part.function_call
            calls.append({"id": call.id, "name": call.name, "arguments": call.args or {}})
    text = text_of(content)
    if not text and not calls:
        return results
    return [
        *results,
        {"role": "assistant" if content.role == "model" else "user", "content": text, "tool_calls": calls},
    ]


def text_of(content: object) -> str:
    """The words of a content, a part, or a list of them, without thoughts.

    Raises:
        InvalidInput: there is something else than words, calls and results.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        return "\n\n".join(text_of(one) for one in content)
    if isinstance(content, types.Content):
        return "\n".join(text for part in content.parts or [] if (text := text_of(part)))
    part = types.Part.model_validate(content, from_attributes=True)
    kinds = part.model_dump(exclude_none=True, exclude=_PASSED_OVER).keys()
    if other := kinds - {"text", "thought", "function_call", "function_response"}:
        raise InvalidInput(f"a message has a part of kind {min(other)!r}; the model reads text only")
    return "" if part.thought else part.text or ""


def _result(response: Mapping[str, Any] | None) -> str:
    """What a tool gave. ADK packs what is no dict into one, as its ``result``."""
    given: Any = response
    if isinstance(response, Mapping) and len(response) == 1 and isinstance(response.get("result"), str):
        given = response["result"]
    return given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False, default=str)


def to_options(config: types.GenerateContentConfig) -> dict[str, Any]:
    """What the answer is to be like: sampling, tools, its form."""
    schema = config.response_json_schema or config.response_schema
    wanted = schema is not None or config.response_mime_type == "application/json"
    options: dict[str, Any] = {
        "temperature": config.temperature or 0.0,
        "top_p": 1.0 if config.top_p is None else config.top_p,
        "top_k_tokens": int(config.top_k or 0),
        "max_new_tokens": config.max_output_tokens,
        "seed": config.seed,
        "stop": config.stop_sequences or (),
        "tools": [_tool(one) for tool in config.tools or [] for one in _declared(tool)],
        "response_format": _form(schema) if wanted else None,
    }
    calling = config.tool_config and config.tool_config.function_calling_config
    if calling and calling.mode and options["tools"]:
        options["tool_choice"] = _CHOICES.get(calling.mode.value, "auto")
        if names := calling.allowed_function_names:
            options["tools"] = [tool for tool in options["tools"] if tool["function"]["name"] in names]
    return options


def _declared(tool: object) -> Sequence[types.FunctionDeclaration]:
    return getattr(tool, "function_declarations", None) or ()


def _tool(declared: types.FunctionDeclaration) -> dict[str, Any]:
    parameters = declared.parameters_json_schema or (declared.parameters and _schema(declared.parameters))
    function = {"name": declared.name, "description": declared.description, "parameters": parameters or {}}
    return {"type": "function", "function": function}


def _schema(schema: Any) -> Any:
    """A schema of any of Google's forms as a JSON schema."""
    if isinstance(schema, types.Schema):
        return schema.json_schema.model_dump(mode="json", exclude_none=True, by_alias=True)
    return schema if isinstance(schema, Mapping) else TypeAdapter(schema).json_schema()


def _form(schema: Any) -> dict[str, Any]:
    if schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": _schema(schema)}}


def to_piece(piece: str) -> LlmResponse:
    """A piece of a reply that is not finished."""
    return LlmResponse(content=types.Content(role="model", parts=[types.Part(text=piece)]), partial=True)


def to_response(reply: Reply, model: str) -> LlmResponse:
    """A finished reply: its words, its calls, and which memories were read."""
    parts = [types.Part(text=reply.text)] if reply.text or not reply.tool_calls else []
    calls = [types.FunctionCall(id=call.id, name=call.name, args=call.arguments) for call in reply.tool_calls]
    read = [{"id": one.memory.id, "text": one.memory.text, "attention": one.attention} for one in reply.memories]
    usage = reply.usage
    prompt = usage.prompt_tokens + usage.memory_tokens
    return LlmResponse(
        model_version=model,
        content=types.Content(role="model", parts=[*parts, *(types.Part(function_call=call) for call in calls)]),
        partial=False,
        finish_reason=_FINISHED.get(reply.finish_reason, types.FinishReason.STOP),
        custom_metadata={"memories": read, "notes": list(reply.notes)},
        usage_metadata=types.GenerateContentResponseUsageMetadata(
            prompt_token_count=prompt,
            cached_content_token_count=usage.memory_tokens,
            candidates_token_count=usage.completion_tokens,
            total_token_count=prompt + usage.completion_tokens,
        ),
    )
