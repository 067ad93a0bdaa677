"""Recipes written in one word, for command lines: ``infllm``, ``infllm:n_local=1024,top_k=16``."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from agentmem.errors import InvalidInput
from agentmem.recipes import Recipe, StreamRecipe, get_recipe


def parse_recipe(text: str) -> Recipe | StreamRecipe:
    """The recipe of that name, with fields of it set; ``none`` stands for None, ``1+3`` for the tuple (1, 3).

    Raises:
        InvalidInput: an unknown name or field, or a value that the field cannot have.
    """
    name, _, settings = text.partition(":")
    default = get_recipe(name)
    kind = type(default)
    hints = get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # all are
    given: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        field, equals, value = setting.partition("=")
        if not equals or field not in fields:
            raise InvalidInput(
                f"{setting!r} in {text!r} sets no field of {name!r}; write NAME=VALUE, with one of {', '.join(fields)}"
            )
        try:
            given[field] = TypeAdapter(fields[field]).validate_python(_value(value))
        except ValidationError as error:
            why = "; ".join(detail["msg"] for detail in error.errors())
            raise InvalidInput(f"{field}={value} in {text!r} cannot be used: {why}") from error
    return kind(**given)


def _value(text: str) -> str | tuple[str, ...] | None:
    """What pydantic turns into the field's own type."""
    if text.lower() == "none":
        return None
    return tuple(text.split("+")) if "+" in text else text
