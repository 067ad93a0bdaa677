"""Take the position out of keys, and put another one in, with the model's own rotary module.

Nothing here knows a model family. One token is run at a few positions, and for every layer it is found out which of
the known ways to apply cos and sin turns its key at position 0 into its key at the others.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agentmem.errors import UnsupportedModel
from agentmem.model.attention import Call, Hook, attached, attention_layers, probe
from agentmem.model.reading import Capture
from agentmem.model.softmax import Mixed

_PROBES = (3, 29)
"""Positions that keys are compared at."""


class Kind(StrEnum):
    """How a layer's keys carry their position."""

    ROPE = "rope"
    """By rotation: it can be undone."""
    NONE = "none"
    """Not at all (NoPE)."""
    ABSOLUTE = "absolute"
    """Mixed into keys and values (learned positions), or in a way not known here: it cannot be undone."""


@dataclass(frozen=True, slots=True)
class LayerRotation:
    """How one layer rotates its keys.

    ``layout`` says how the table holds its angles ("twice", "interleaved", "once"); ``pairs`` which dims form a pair
    ("half": i and i + width / 2, "adjacent": 2i and 2i + 1); ``sense`` +1 or -1; the rotated dims are
    ``offset .. offset + width - 1``. ``error`` is the largest difference between a predicted and the model's own key,
    relative to the largest entry.
    """

    kind: Kind
    error: float = 0.0
    layer_type: str | None = None
    layout: str = "twice"
    pairs: str = "half"
    sense: int = 1
    offset: int = 0
    width: int = 0


class Rotary:
    """Un-rotates and rotates keys of any layer of ``model``; found out by probing it once.

    Raises:
        UnsupportedModel: attention cannot be observed at all (see ``attention_layers``).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._dtype: torch.dtype = model.dtype
        found = next((m for name, m in model.named_modules() if name.rpartition(".")[2].startswith("rotary_emb")), None)
        # A copy: some rotary modules remember the longest sequence they saw, and asking them must not change the model.
        self._module = copy.deepcopy(found)
        self._device = next(model.parameters()).device
        self._plain_at_zero: dict[int, bool] = {}
        self.layers: tuple[LayerRotation, ...] = self._calibrate(model)

    @property
    def movable(self) -> bool:
        """True when every layer's keys can be moved to other positions."""
        return all(layer.kind is not Kind.ABSOLUTE for layer in self.layers)

    @property
    def error(self) -> float:
        """Largest calibration error of all layers (relative; about 1e-6 in float32, 1e-2 in bfloat16)."""
        return max(layer.error for layer in self.layers)

    def unrotate(self, layer: int, keys: Tensor, positions: Tensor) -> Tensor:
        """Take the position out.

        Args:
            layer: number of the model's layer.
            keys: (kv_heads, tokens, head_dim) as the model rotated them.
            positions: (tokens,) or (kv_heads, tokens), int64.

        Returns:
            Keys of the same shape and dtype, computed in float32 or wider with the tables that the model used
            (tables in the model's dtype: in bfloat16 that halves the error).

        Raises:
            UnsupportedModel: this layer's keys cannot be moved.
        """
        how = self._rotation(layer)
        if how.kind is Kind.NONE:
            return keys.clone(memory_format=torch.contiguous_format)
        cos, sin = self._tables(how, positions, self._dtype)
        return _unturn(_wide(keys), cos, sin, how).to(keys.dtype)

    def rotate(self, layer: int, keys: Tensor, positions: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Put a position in: the inverse of ``unrotate``. Positions may be negative.

        Raises:
            UnsupportedModel: this layer's keys cannot be moved.
        """
        how = self._rotation(layer)
        dtype = out_dtype or keys.dtype
        if how.kind is Kind.NONE:
            return keys.to(dtype).clone(memory_format=torch.contiguous_format)
        wide = _wide(keys)
        cos, sin = self._tables(how, positions, wide.dtype)
        return _turn(wide, cos, sin, how).to(dtype)

    def at_zero(self, layer: int, keys: Tensor) -> Tensor:
        """``rotate`` to position 0: the keys as they are, except for models that scale their tables (yarn, longrope).

        Raises:
            UnsupportedModel: this layer's keys cannot be moved.
        """
        if layer not in self._plain_at_zero:
            zero = torch.zeros(1, dtype=torch.int64)
            probe = torch.ones(1, 1, keys.shape[-1], device=keys.device)
            self._plain_at_zero[layer] = torch.equal(self.rotate(layer, probe, zero), probe)
        if self._plain_at_zero[layer]:
            return keys
        return self.rotate(layer, keys, torch.zeros(1, dtype=torch.int64))

    def _rotation(self, layer: int) -> LayerRotation:
        how = self.layers[layer]
        if how.kind is Kind.ABSOLUTE:
            raise UnsupportedModel(
                f"the keys of layer {layer} hold learned absolute positions, which cannot be taken out or moved; use a "
                "model with rotary positions or none (Llama, Qwen2/3, Mistral, Gemma, Phi, OLMo, SmolLM)"
            )
        return how

    def _tables(self, how: LayerRotation, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, each (1 or kv_heads, tokens, width / 2), as the model computes them for inputs of ``dtype``."""
        assert self._module is not None
        rows = positions.to(self._device).reshape(-1, positions.shape[-1])
        kwargs: dict[str, Any] = {} if how.layer_type is None else {"layer_type": how.layer_type}
        with torch.no_grad():
            table = self._module(torch.empty(1, dtype=dtype, device=self._device), rows, **kwargs)
        cos, sin = table if isinstance(table, tuple) else (table.real, table.imag)
        if how.layout == "twice":
            cos, sin = cos[..., : cos.shape[-1] // 2], sin[..., : sin.shape[-1] // 2]
        elif how.layout == "interleaved":
            cos, sin = cos[..., 0::2], sin[..., 0::2]
        return _wide(cos), _wide(sin) * how.sense

    def _calibrate(self, model: PreTrainedModel) -> tuple[LayerRotation, ...]:
        modules = attention_layers(model)
        with torch.no_grad(), _recording_calls(modules) as calls:
            base = _capture(model, 0)
            at_zero = dict(calls)
            moved: list[dict[int, Tensor]] = []
            for position in _PROBES:
                far = _capture(model, position)
                moved.append(_replay(model, modules, at_zero, dict(calls)))
        if not torch.equal(base.values[0], far.values[0]):
            # Layer 0 sees nothing but the embedding of one token: its values depend on the position only if that does.
            return tuple(LayerRotation(Kind.ABSOLUTE, 1.0) for _ in modules)
        found: list[LayerRotation] = []
        for number in range(len(modules)):
            keys = base.keys[number][0]
            others = [_wide(keys_at[number][0]) for keys_at in moved]
            found.append(self._fit(_wide(keys), others, found[::-1], keys.dtype))
        return tuple(found)

    def _fit(self, keys: Tensor, others: list[Tensor], seen: list[LayerRotation], dtype: torch.dtype) -> LayerRotation:
        """The way of rotating that turns ``keys`` (at position 0) into ``others`` (at ``_PROBES``)."""
        if all(torch.equal(keys, other) for other in others):
            return LayerRotation(Kind.NONE)
        if self._module is None:
            return LayerRotation(Kind.ABSOLUTE, 1.0)
        tolerance = 4 * torch.finfo(dtype).eps + 1e-5
        best = LayerRotation(Kind.ABSOLUTE, float("inf"))
        positions = torch.tensor([0, *_PROBES])
        for how in itertools.chain(dict.fromkeys(seen), self._candidates(keys.shape[-1])):
            if how.kind is not Kind.ROPE:
                continue
            cos, sin = self._tables(how, positions, torch.float32)
            still = _unturn(keys, cos[:, :1], sin[:, :1], how)
            error = 0.0
            for at, other in enumerate(others, 1):
                turned = _turn(still, cos[:, at : at + 1], sin[:, at : at + 1], how)
                error = max(error, ((turned - other).abs().max() / other.abs().max()).item())
            if error < 0.999 * best.error:
                best = LayerRotation(
                    Kind.ROPE, error, how.layer_type, how.layout, how.pairs, how.sense, how.offset, how.width
                )
            if how in seen and best.error < tolerance / 4:
                break
        return best if best.error < tolerance else LayerRotation(Kind.ABSOLUTE, best.error)

    def _candidates(self, head_dim: int) -> Iterator[LayerRotation]:
        """Every known way to rotate that fits this rotary module and head."""
        assert self._module is not None
        types: list[str | None] = [None]
        if "layer_type" in inspect.signature(self._module.forward).parameters:
            config = self._module.config
            types += sorted(set(getattr(config, "layer_types", None) or ()))
        for layer_type, layout in itertools.product(types, ("twice", "interleaved", "once")):
            how = LayerRotation(Kind.ROPE, 0.0, layer_type, layout)
            try:
                half = self._tables(how, torch.tensor([0]), torch.float32)[0].shape[-1]
            except (AttributeError, KeyError, TypeError, ValueError):
                continue  # this module has no table of that name
            for offset in sorted({0, head_dim - 2 * half} if 2 * half <= head_dim else ()):
                for pairs, sense in itertools.product(("half", "adjacent"), (1, -1)):
                    yield LayerRotation(Kind.ROPE, 0.0, layer_type, layout, pairs, sense, offset, 2 * half)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _turn(keys: Tensor, cos: Tensor, sin: Tensor, how: LayerRotation) -> Tensor:
    """Rotate ``keys`` (kv_heads, tokens, head_dim) by tables (1 or kv_heads, tokens, width / 2)."""
    start, stop = how.offset, how.offset + how.width
    part = keys[..., start:stop]
    if how.pairs == "half":
        a, b = part.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = part[..., 0::2], part[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return torch.cat((keys[..., :start], turned, keys[..., stop:]), -1)


def _unturn(keys: Tensor, cos: Tensor, sin: Tensor, how: LayerRotation) -> Tensor:
    """Inverse of ``_turn``. Dividing by cos^2 + sin^2 also takes out a factor in the tables (yarn, longrope)."""
    norm = cos * cos + sin * sin
    return _turn(keys, cos / norm, -sin / norm, how)


def _capture(model: PreTrainedModel, position: int) -> Capture:
    capture = Capture()
    with attached(model, capture):
        probe(model, position)
    return capture


class _Recorder(Hook):
    """Keys by layer, of attention modules that are called one by one."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}

    def mixed(self, call: Call, segments: object, result: Mixed) -> None:
        self.keys[call.layer] = call.keys


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def _recording_calls(modules: tuple[nn.Module, ...]) -> Iterator[dict[nn.Module, Arguments]]:
    """Arguments of the latest call of each module."""
    calls: dict[nn.Module, Arguments] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = (args, kwargs)

    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _replay(
    model: PreTrainedModel,
    modules: tuple[nn.Module, ...],
    at_zero: dict[nn.Module, Arguments],
    elsewhere: dict[nn.Module, Arguments],
) -> dict[int, Tensor]:
    """Call every attention module on its hidden state of position 0 with the position arguments of another one.

    In one forward, deeper layers' hidden states would differ by rounding; this isolates the rotation.
    """
    recorder = _Recorder()
    with attached(model, recorder):
        for module in modules:
            (args_zero, kwargs_zero), (args, kwargs) = at_zero[module], elsewhere[module]
            if "hidden_states" in kwargs_zero:
                module(*args, **{**kwargs, "hidden_states": kwargs_zero["hidden_states"]})
            else:
                module(args_zero[0], *args[1:], **kwargs)
    return recorder.keys
