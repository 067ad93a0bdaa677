"""How memory is written and read: one published system per file."""

from __future__ import annotations

from agentmem.errors import InvalidInput
from agentmem.recipes.base import Recipe
from agentmem.recipes.parallel import Parallel

RECIPES: dict[str, type[Recipe]] = {"parallel": Parallel}


def get_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe itself, or the one of that name with its paper's defaults. Raises InvalidInput for an unknown name."""
    if not isinstance(recipe, str):
        return recipe
    if recipe not in RECIPES:
        raise InvalidInput(f"unknown recipe {recipe!r}; choose one of {', '.join(sorted(RECIPES))}")
    return RECIPES[recipe]()


__all__ = ["RECIPES", "Parallel", "Recipe", "get_recipe"]
