"""Chat templates that write tools, in each family's documented form but our own words."""

from __future__ import annotations

from typing import Any

from tiny_models import tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

_OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_HERMES_SYSTEM = (
    "{% set lead = messages[0].content if messages[0].role == 'system' else 'You help.' %}"
    "<|im_start|>system\n{{ lead }}"
    "{% if tools %}\n\n# Tools\n\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n</tools>\n\nAnswer with\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>{% endif %}<|im_end|>\n'
)
_RESULTS = (
    "{% elif m.role == 'tool' %}{% if loop.first or loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
)
_TURNS = (
    "{% if m.role in ['user', 'assistant'] and not m.tool_calls %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
)

HERMES = (
    _HERMES_SYSTEM + "{% for m in messages %}" + _TURNS + "{% elif m.tool_calls %}<|im_start|>assistant"
    "{% if m.content %}\n{{ m.content }}{% endif %}{% for c in m.tool_calls %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n" + _RESULTS + "{% endif %}{% endfor %}" + _OPENING
)
"""Hermes, Qwen 2, 2.5 and 3."""

MARKUP = (
    _HERMES_SYSTEM.replace(
        '{"name": <function-name>, "arguments": <args-json-object>}',
        "<function=some_name>\n<parameter=some_key>\nvalue\n</parameter>\n</function>",
    )
    + "{% for m in messages %}"
    + _TURNS
    + "{% elif m.tool_calls %}<|im_start|>assistant{% if m.content %}\n{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls %}\n<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n"
    "</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}<|im_end|>\n"
    + _RESULTS
    + "{% endif %}{% endfor %}"
    + _OPENING
)
"""Qwen 3.5, Qwen 3 Coder."""

LLAMA = (
    "{{ bos_token }}{% set ns = namespace(first=true) %}{% for m in messages %}"
    "{% if m.role == 'user' and ns.first and tools %}{% set ns.first = false %}<|start_header_id|>user<|end_header_id|>"
    '\n\nAnswer with {"name": function name, "parameters": dictionary}.\n\n{% for t in tools %}{{ t | tojson }}\n\n'
    "{% endfor %}{{ m.content }}<|eot_id|>"
    "{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|eot_id|>'
    "{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n{{ m.content | tojson }}<|eot_id|>"
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Llama 3.1 to 3.3."""

_MISTRAL_HEAD = (
    "{{ bos_token }}{% set ns = namespace(n=0, last=-1, system='') %}{% for m in messages %}"
    "{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}"
    "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% if loop.index0 == ns.last and tools %}[AVAILABLE_TOOLS] "
    "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {% if loop.index0 == ns.last and ns.system %}"
    "{{ ns.system }}\n\n{% endif %}{{ m.content }}[/INST]"
)
_MISTRAL_TAIL = "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}"
_NINE = "{% if id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
MISTRAL = (
    _MISTRAL_HEAD
    + "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{% set id = c.id %}"
    + _NINE
    + '{"name": '
    '"{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]</s>{% elif m.role == 'tool' %}{% set id = m.tool_call_id %}"
    + _NINE
    + '[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "{{ id }}"}[/TOOL_RESULTS]'
    + _MISTRAL_TAIL
)
"""Mistral 7B v0.3, Nemo."""
MISTRAL_ARGS = (
    _MISTRAL_HEAD + "{% elif m.tool_calls %}{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]"
    "{{ c.function.arguments | tojson }}{% endfor %}</s>{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}"
    "[/TOOL_RESULTS]" + _MISTRAL_TAIL
)
"""Mistral Small 3.2 and later."""


def _gemma(opened: str, closed: str, mark: str, turn: str, end: str, said: str) -> str:
    return (
        "{% macro val(v) %}{% if v is string %}" + mark + "{{ v }}" + mark + "{% elif v is mapping %}{{ '{' }}"
        "{% for k, w in v.items() %}{{ k }}:{{ val(w) }}{% if not loop.last %},{% endif %}{% endfor %}}"
        "{% elif v is sequence %}[{% for w in v %}{{ val(w) }}{% if not loop.last %},{% endif %}{% endfor %}]"
        "{% else %}{{ v | tojson }}{% endif %}{% endmacro %}{{ bos_token }}"
        "{% if tools or messages[0].role == 'system' %}" + turn + "system\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{% for t in tools or [] %}"
        "declaration:{{ t.function.name }}{{ val(t.function) }}{% endfor %}" + end + "\n{% endif %}"
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'tool' %}"
        + said
        + "{{ m.name }}{{ '{' }}value:{{ val(m.content) }}}"
        "{% else %}" + turn + "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}"
        + opened
        + "call:{{ c.function.name }}{{ val(c.function.arguments) }}"
        + closed
        + "{% endfor %}{% endif %}"
        + end
        + "\n{% endfor %}{% if add_generation_prompt %}"
        + turn
        + "model\n{% endif %}"
    )


GEMMA = _gemma("<|tool_call>", "<tool_call|>", '<|"|>', "<|turn>", "<turn|>", "<|tool_response>response:")
"""Gemma 4."""
FUNCTION_GEMMA = _gemma(
    "<start_function_call>",
    "<end_function_call>",
    "<escape>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_function_response>response:",
)

FAMILIES: dict[str, tuple[str, list[str], list[str]]] = {
    "hermes": (HERMES, [], ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]),
    "markup": (MARKUP, [], ["<tool_call>", "</tool_call>"]),
    "llama": (LLAMA, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"], []),
    "mistral": (
        MISTRAL,
        [
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ],
        [],
    ),
    "mistral_args": (
        MISTRAL_ARGS,
        ["[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
        [],
    ),
    "gemma": (GEMMA, ["<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>"], []),
    "function_gemma": (
        FUNCTION_GEMMA,
        ["<start_of_turn>", "<end_of_turn>", "<start_function_call>", "<end_function_call>", "<escape>"],
        [],
    ),
}
"""Name: template, special tokens, tokens that are not special."""


def family(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one token per byte, with the template and the tokens of a family."""
    template, special, ordinary = FAMILIES[name]
    out = tokenizer(template)
    out.add_tokens([AddedToken(text, special=True, normalized=False) for text in special], special_tokens=True)
    out.add_tokens([AddedToken(text, special=False, normalized=False) for text in ordinary])
    return out


def tool(name: str, properties: dict[str, Any], required: list[str], **more: Any) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    parameters = {"type": "object", "properties": properties, "required": required, **more}
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}
