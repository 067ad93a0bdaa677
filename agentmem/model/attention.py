"""Where memory meets the model: an attention function registered with transformers, and what may hang on it.

Every decoder of the supported kind calls ``attention(module, query, key, value, mask, ...)`` by the name in its config.
While a hook is attached, that name is ``agentmem``; before and after, the model is untouched. A hook adds segments of
keys to the one softmax of each layer (read), or looks at what the layer computed (write). This file and rotary.py are
the only ones that know how transformers calls attention.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from agentmem.errors import InvalidInput, UnsupportedModel
from agentmem.model.softmax import Mixed, Segment, mix

NAME = "agentmem"
"""Name under which the attention function and its mask function are registered."""

_SLOT = "_agentmem_slot"
_discovered: ContextVar[list[nn.Module] | None] = ContextVar("agentmem_discovered", default=None)
_layers: weakref.WeakKeyDictionary[PreTrainedModel, tuple[nn.Module, ...]] = weakref.WeakKeyDictionary()
_plain: weakref.WeakKeyDictionary[PreTrainedModel, str] = weakref.WeakKeyDictionary()
"""The implementation that a model had before anything was attached."""


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One attention call of one layer, as a hook sees it. Queries and keys are rotated already.

    ``query`` (B, heads, Q, head_dim); ``keys`` (B, kv_heads, Q, head_dim) and ``values`` are those of this forward's
    own tokens, without what the context cache holds; ``positions`` (B or 1, Q) or None where the model does not say;
    ``window`` is the layer's sliding window in tokens, None when it sees everything.
    """

    layer: int
    query: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor | None
    window: int | None
    scaling: float
    softcap: float | None


class Hook:
    """What can be attached to a model. Override what is needed."""

    alone = False
    """True: every token attends to itself only, to see whether anything but attention links tokens."""
    needs_parts = True
    """False: ``mixed`` is not used, only the output matters. Faster where gradients are wanted."""

    def context(self, call: Call, context: Segment) -> Segment:
        """The context's own segment, as it is or another in its place."""
        return context

    def segments(self, call: Call) -> Sequence[Segment]:
        """Segments to read besides the context, in this layer and forward."""
        return ()

    def mixed(self, call: Call, segments: Sequence[Segment], result: Mixed) -> None:
        """Called after the softmax; ``result.parts[0]`` is the context, ``parts[1:]`` are ``segments``."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Memory as placed for reading: rotated to where it is served. Made by ``LocalModel.place``.

    ``keys[layer]`` (kv_heads, M, head_dim) and ``values[layer]`` (kv_heads, M, value_dim), or None for a layer that
    reads no memory; ``spans[i]`` is the range of memory ``i`` along M; ``positions`` (M,), int64. What stands before
    the first span belongs to no memory; a layer may hold that alone, and is then shorter. Layers may still be on their
    way; asking for one waits for it.
    ``temperature`` divides the memory's logits and ``scale`` multiplies its log-sum-exp (APE). ``windowed`` hides
    memory outside a sliding-window layer's window, by position; otherwise memory is always visible.
    """

    keys: Sequence[Tensor | None]
    values: Sequence[Tensor | None]
    spans: tuple[tuple[int, int], ...]
    positions: Tensor
    temperature: float = 1.0
    scale: float = 1.0
    windowed: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not self.scale > 0:
            raise InvalidInput(f"temperature {self.temperature} and scale {self.scale} must be positive")

    @property
    def n_tokens(self) -> int:
        """Number of memory tokens that a query can attend to, in each layer that reads memory."""
        return sum(stop - start for start, stop in self.spans)


def agentmem_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: one softmax over the context and what the attached hook adds.

    ``dropout`` on attention weights is not applied (decoder-only language models are trained without it today).
    Returns ``(output (B, Q, heads, value_dim), None)``.
    """
    if (found := _discovered.get()) is not None:
        found.append(module)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    n_queries = query.shape[2]
    new_keys, new_values = key[:, :, -n_queries:], value[:, :, -n_queries:]
    if attention_mask is None and key.shape[2] > n_queries > 1:
        # transformers skips the mask of a prefill into an empty static cache: only the first keys are real there.
        key, value = key[:, :, :n_queries], value[:, :, :n_queries]
        new_keys, new_values = key, value
    context = Segment(key, value, mask=attention_mask, causal=attention_mask is None and n_queries > 1)
    slot: tuple[Hook, int] | None = getattr(module, _SLOT, None)
    if slot is None:
        result = mix(query, (context,), scaling, softcap, s_aux)
    else:
        hook, layer = slot
        if hook.alone:
            context = Segment(new_keys, new_values, mask=torch.eye(n_queries, dtype=torch.bool, device=query.device))
        window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
        positions = kwargs.get("position_ids")
        call = Call(layer, query, new_keys, new_values, positions, window, scaling, softcap)
        context = hook.context(call, context)
        segments = hook.segments(call)
        result = mix(query, (context, *segments), scaling, softcap, s_aux, hook.needs_parts)
        hook.mixed(call, segments, result)
    return result.output.transpose(1, 2).contiguous(), None


def attention_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The model's attention modules in layer order, found by running one token through it (once per model).

    Raises:
        UnsupportedModel: attention that cannot be replaced by name, is called more than once per layer, or is missing
            from some layers (recurrent state cannot be read by attention).
    """
    if (known := _layers.get(model)) is not None:
        return known
    found: list[nn.Module] = []
    kind = model.config.model_type
    with _implementation(model, NAME), torch.no_grad():
        token = _discovered.set(found)
        try:
            probe(model, 0)
        finally:
            _discovered.reset(token)
    expected = model.config.get_text_config(decoder=True).num_hidden_layers
    if len(set(found)) != len(found):
        raise UnsupportedModel(
            f"{kind!r} calls attention more than once per layer; agentmem cannot attach memory to it"
        )
    if len(found) != expected:
        raise UnsupportedModel(f"{kind!r} has {expected} layers but {len(found)} of them attend{_OTHER_STATE}")
    _layers[model] = tuple(found)
    if not _only_attention_links_tokens(model):
        del _layers[model]
        raise UnsupportedModel(f"{kind!r} links tokens by more than attention{_OTHER_STATE}")
    return _layers[model]


_OTHER_STATE = (
    ": it keeps a recurrent or convolutional state, which stored keys and values cannot restore. Use a model that "
    "attends in every layer and does nothing else across tokens (Llama, Qwen2/3, Mistral, Gemma, Phi, OLMo, SmolLM)"
)


class _Alone(Hook):
    alone = True


def _only_attention_links_tokens(model: PreTrainedModel) -> bool:
    """Whether a token's logits stay the same when the one before it changes and attention is kept from seeing it."""
    with attached(model, _Alone()), torch.no_grad():
        ids = (
            torch.tensor([[3, 5], [4, 5]], device=model.device) % model.config.get_text_config(decoder=True).vocab_size
        )
        first, second = (model(input_ids=row[None], use_cache=False).logits[0, -1].float() for row in ids)
    return bool((first - second).abs().max() <= 1e-2 * first.abs().max())


def probe(model: PreTrainedModel, position: int, token: int = 5) -> None:
    """Run one token at one position, without a cache."""
    device = next(model.parameters()).device
    ids = torch.tensor([[token % model.config.get_text_config(decoder=True).vocab_size]], device=device)
    model(input_ids=ids, position_ids=torch.tensor([[position]], device=device), use_cache=False)


@contextmanager
def attached(model: PreTrainedModel, hook: Hook) -> Iterator[None]:
    """Attach ``hook`` to every layer; on exit the model is as it was, whatever was attached before included."""
    layers = attention_layers(model)
    before = [getattr(module, _SLOT, None) for module in layers]
    with _implementation(model, NAME):
        try:
            for number, module in enumerate(layers):
                setattr(module, _SLOT, (hook, number))
            yield
        finally:
            for module, slot in zip(layers, before, strict=True):
                if slot is None:
                    delattr(module, _SLOT)
                else:
                    setattr(module, _SLOT, slot)


@contextmanager
def _implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Set the attention implementation by name, and put the old one back."""
    AttentionInterface.register(NAME, agentmem_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # without it there would be no mask at all, and no warning
    before = model.config._attn_implementation
    if before != NAME:
        _plain[model] = before
    try:
        if before != name:
            set_implementation(model, name)
        yield
    finally:
        if model.config._attn_implementation != before:
            set_implementation(model, before)


def plain_implementation(model: PreTrainedModel) -> str:
    """Name of the attention function that the model uses when nothing is attached."""
    now: str = model.config._attn_implementation
    return _plain[model] if now == NAME else now


def set_implementation(model: PreTrainedModel, name: str) -> None:
    """Switch the model to the attention function of that name.

    Raises:
        UnsupportedModel: its attention does not go through the registry.
    """
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise UnsupportedModel(
            f"{model.config.model_type!r} has attention code of its own that cannot be replaced by name; use a model "
            "whose attention goes through transformers' AttentionInterface (Llama, Qwen2/3, Mistral, Gemma, Phi, OLMo)"
        )
