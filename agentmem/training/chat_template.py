"""The bundled model's chat template: turns between special tokens, and tools in as few tokens as they allow.

A tool is two lines: its name in words with what it is for, and then the arguments of a call with their types in the
values' places, token for token as a call has them. A token can only know what it has read. So in each tool what selects
it stands before what is copied from it, and all tools stand behind the last user's turn: the line that is copied then
knows what is asked, and whether it is meant.
"""

from __future__ import annotations

_TYPES = (
    "{'string': 'word', 'integer': 'number', 'number': 'number', 'boolean': 'true or false', 'array': 'list', "
    "'object': 'object', 'null': 'null'}"
)
_UPPER = "'ABCDEFGHIJKLMNOPQRSTUVWXYZ'"

_WORDS = (
    "{% macro words(name) %}{% for c in name %}{% if c in " + _UPPER + " %}{{ '' if loop.first else ' ' }}{{ c | lower"
    " }}{% elif c in '_-.' %} {% else %}{{ c }}{% endif %}{% endfor %}{% endmacro %}"
)
"""get_weather and getWeather are "get weather", in the tokens that people's words have."""

_ONE = (
    "{% macro one(p) %}{% if p is not mapping %}any"
    "{% elif p['enum'] and p['enum'] is sequence %}{% for v in p['enum'] %}"
    "{{ ' or ' if not loop.first }}{{ v | tojson }}{% endfor %}"
    "{% elif p['const'] is defined %}{{ p['const'] | tojson }}"
    "{% elif p['type'] is string %}{{ " + _TYPES + ".get(p['type'], p['type']) }}"
    "{% elif p['type'] and p['type'] is sequence %}{% for t in p['type'] %}{{ ' or ' if not loop.first }}"
    "{{ " + _TYPES + ".get(t, t) }}{% endfor %}"
    "{% elif p['$ref'] is defined or p['properties'] is defined %}object"
    "{% else %}any{% endif %}{% endmacro %}"
)
_KIND = (
    "{% macro kind(p) %}{% set choices = (p['anyOf'] or p['oneOf']) if p is mapping %}"
    "{% if choices and choices is sequence %}{% for c in choices %}{{ ' or ' if not loop.first }}{{ one(c) }}"
    "{% endfor %}{% else %}{{ one(p) }}{% endif %}{% endmacro %}"
)
_COMMON = (
    "'a an the of for to in on by with is it use tool this that given current and or what which please can you i my me "
    "your when how get all one number name user'.split()"
)
_MARKED = (
    "{% macro marked(text, whole) %}{% for w in text.split() %}{{ ' ' if not loop.first }}{{ w }}"
    "{% set bare = w.lower().strip('.,:;!?()') %}"
    "{{ '*' if whole in at.said or (bare in at.said and bare not in common) }}{% endfor %}{% endmacro %}"
)
"""A star behind each word that the request has, too. ``whole`` is a name that may stand there in one word."""
_SAID = (
    "{% set content = message['content'] if message['content'] is string else '' %}"
    "{% set content = content[-2000:] | lower %}"
    "{% for c in '.,:;!?()=_-' %}{% set at.text = content if loop.first else at.text %}"
    "{% set at.text = at.text.replace(c, ' ') %}{% endfor %}"
    "{% set at.said = at.text.replace('\"', ' ').replace(\"'\", ' ').split() %}"
)
_TOOL = (
    "{% set f = tool['function'] %}{% set schema = f['parameters'] if f['parameters'] is mapping else {} %}"
    "{% set properties = schema['properties'] if schema['properties'] is mapping else {} %}"
    "{% set needed = schema['required'] if schema['required'] and schema['required'] is sequence else [] %}"
    "{% set title = words(f['name']) %}{% set whole = title.replace(' ', '') %}"
    "{{ '\\n- ' }}{{ marked(title, whole) }}{% set d = f['description'] %}"
    "{{ ': ' + marked(d, '') if d is string and d.split() }}"
    "{% for key, p in properties | items %}{% set d = p['description'] if p is mapping %}"
    "{{ ' ' + key + ': ' + marked(d, '') if d is string and d.split() }}{% endfor %}"
    "{{ '\\n' + f['name'] + ' {' }}{% for key, p in properties | items %}{{ ', ' if not loop.first }}"
    "{{ key | tojson }}: {{ kind(p) }}{{ '?' if key not in needed }}{% endfor %}{{ '}' }}"
)
_CALL = (
    "{% for call in message['tool_calls'] %}{{ '\\n' if not loop.first }}"
    "{{ '<tool_call>\\n{\"name\": ' }}{{ call['function']['name'] | tojson }}"
    "{{ ', \"arguments\": ' }}{{ call['function']['arguments'] | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}"
)

_OFFER = "{% macro offer() %}<|system|> Tools:{% for tool in tools %}" + _TOOL + "{% endfor %}<|end|>{% endmacro %}"

CHAT_TEMPLATE = (
    _WORDS + _ONE + _KIND + "{% set at = namespace(last=-1, said=[], text='') %}{% set common = " + _COMMON + " %}"
    "{% if tools %}{% for message in messages %}{% if message['role'] == 'user' %}{% set at.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for message in messages %}{% if loop.index0 == at.last %}" + _SAID + "{% endif %}"
    "{% endfor %}{% endif %}" + _MARKED + _OFFER + "{{ bos_token }}{{ offer() if tools and at.last < 0 }}"
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }}"
    "{% if message['tool_calls'] %}{{ '\\n' if message['content'] }}" + _CALL + "{% endif %}<|end|>"
    "{{ offer() if tools and at.last == loop.index0 }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
