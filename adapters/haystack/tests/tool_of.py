"""Functions as Haystack's tools."""

from collections.abc import Callable
from typing import Any, get_type_hints

from haystack.tools import Tool, create_tool_from_function


def tool_of(function: Callable[..., Any]) -> Tool:
    """A tool of a function whose annotations are strings, as they are in these tests: Haystack 3.0 wants types."""
    function.__annotations__ = get_type_hints(function)
    return create_tool_from_function(function)
