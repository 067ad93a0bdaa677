"""A context without end, read through sinks, a window and the blocks that matter (InfLLM, arXiv 2402.04617)."""

from agentmem.model.stream.bank import Bank, Blocks, BlocksInRam
from agentmem.model.stream.layout import Layout, check_plan
from agentmem.model.stream.plan import StreamPlan
from agentmem.model.stream.stream import Stream

__all__ = ["Bank", "Blocks", "BlocksInRam", "Layout", "Stream", "StreamPlan", "check_plan"]
