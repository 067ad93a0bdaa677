"""How families of models write calls of tools. A model's form is found in what its own chat template writes."""

from __future__ import annotations

from agentmem.model.calls.base import CallForm
from agentmem.model.calls.gemma import FUNCTION_GEMMA, GEMMA4
from agentmem.model.calls.markup import Markup
from agentmem.model.calls.mistral import WITH_ARGS, WITHOUT_ARGS, Listed
from agentmem.model.calls.reader import Answer, AnswerReader
from agentmem.model.calls.tagged import Bare, Tagged

__all__ = ["FORMS", "MARKERS", "PLAIN", "Answer", "AnswerReader", "CallForm", "recognise"]

PLAIN = Tagged()
"""The form for models whose template knows no tools: what to write then stands in the system text."""

FORMS: tuple[CallForm, ...] = (
    Markup(),
    PLAIN,
    Listed(),
    WITH_ARGS,
    WITHOUT_ARGS,
    GEMMA4,
    FUNCTION_GEMMA,
    Bare(),
)

MARKERS = frozenset(marker for form in FORMS for marker in form.markers)
"""Tokens that are part of a call: they stay in an answer's text although some tokenizers call them special."""


def recognise(written: str) -> CallForm | None:
    """The form of the call that a chat template wrote; None: it is in none of these."""
    return next((form for form in FORMS if form.looks.search(written)), None)
