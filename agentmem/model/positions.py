"""How many positions a model has."""

from __future__ import annotations

from typing import Any

_FALLBACK = 2048


def max_positions(config: Any) -> int:
    """Positions that a context of this model may use, from its config; 2048 where it does not say.

    With yarn, the scaled length where that is more than ``max_position_embeddings``. With longrope and dynamic scaling,
    the length up to which the rotary table stays the same: past it the model switches to other frequencies, and memory
    that was rotated before would no longer fit.
    """
    limit = int(getattr(config, "max_position_embeddings", None) or _FALLBACK)
    ropes = getattr(config, "rope_parameters", None) or {}
    per_layer_type = [value for value in ropes.values() if isinstance(value, dict)]
    for rope in per_layer_type or [ropes]:
        kind = rope.get("rope_type", "default")
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if kind == "yarn" and original and rope.get("factor"):
            limit = max(limit, int(original * rope["factor"]))
        elif kind in {"longrope", "dynamic"}:
            limit = min(limit, int(original or limit))
    return limit
