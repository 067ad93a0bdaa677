"""How memory is written and read: one published system per file."""

from __future__ import annotations

from agentmem.errors import InvalidInput
from agentmem.recipes.base import Recipe, StreamRecipe
from agentmem.recipes.baselines import FullAttention, LMInfinite, StreamingLLM
from agentmem.recipes.infllm import InfLLM
from agentmem.recipes.memlong import MemLong
from agentmem.recipes.memory3 import Memory3
from agentmem.recipes.parallel import Parallel

RECIPES: dict[str, type[Recipe]] = {"memlong": MemLong, "memory3": Memory3, "parallel": Parallel}


STREAM_RECIPES: dict[str, type[StreamRecipe]] = {
    "full_attention": FullAttention,
    "infllm": InfLLM,
    "lm_infinite": LMInfinite,
    "streaming_llm": StreamingLLM,
}
"""Those that keep a session as one stream; all but ``infllm`` are there to be compared with."""


def get_recipe(recipe: str | Recipe | StreamRecipe) -> Recipe | StreamRecipe:
    """The recipe itself, or the one of that name with its paper's defaults. Raises InvalidInput for an unknown name."""
    if not isinstance(recipe, str):
        return recipe
    known: dict[str, type[Recipe] | type[StreamRecipe]] = {**RECIPES, **STREAM_RECIPES}
    if recipe not in known:
        raise InvalidInput(f"unknown recipe {recipe!r}; choose one of {', '.join(sorted(known))}")
    return known[recipe]()


def memory_recipe(recipe: str | Recipe | StreamRecipe) -> Recipe:
    """``get_recipe``, for what needs memories. Raises InvalidInput for a recipe of streams, too."""
    found = get_recipe(recipe)
    if isinstance(found, StreamRecipe):
        raise InvalidInput(f"{found.name!r} keeps a stream, no memories; choose one of {', '.join(sorted(RECIPES))}")
    return found


def stream_recipe(recipe: str | Recipe | StreamRecipe) -> StreamRecipe:
    """``get_recipe``, for what needs a stream. Raises InvalidInput for a recipe of memories, too."""
    found = get_recipe(recipe)
    if not isinstance(found, StreamRecipe):
        raise InvalidInput(f"{found.name!r} keeps no stream; choose one of {', '.join(sorted(STREAM_RECIPES))}")
    return found


__all__ = [
    "RECIPES",
    "STREAM_RECIPES",
    "FullAttention",
    "InfLLM",
    "LMInfinite",
    "MemLong",
    "Memory3",
    "Parallel",
    "Recipe",
    "StreamRecipe",
    "StreamingLLM",
    "get_recipe",
    "memory_recipe",
    "stream_recipe",
]
