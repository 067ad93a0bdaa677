"""``python -m agentmem``: the same as the ``agentmem`` command."""

from agentmem.cli import app

app(prog_name="agentmem")
