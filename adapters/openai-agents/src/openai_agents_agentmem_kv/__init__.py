"""agentmem for the OpenAI Agents SDK: a model that remembers, and sessions that last.

Importing this turns the SDK's tracing off, which sends runs to OpenAI wherever it finds a key, unless
``OPENAI_AGENTS_DISABLE_TRACING`` says otherwise.
"""

import os

os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")  # the SDK looks at it when it first traces

from openai_agents_agentmem_kv.models import AgentMemModel, AgentMemProvider
from openai_agents_agentmem_kv.sessions import AgentMemSession

__all__ = ["AgentMemModel", "AgentMemProvider", "AgentMemSession"]
