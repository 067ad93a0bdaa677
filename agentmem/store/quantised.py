"""Eight and four bits per number: keys by channel, values by token (KIVI, arXiv 2402.02750).

Keys have channels of outliers that last over tokens, values vary from token to token. So a scale is shared by numbers
of one channel (keys) or of one token (values), at four bits by a group of at most ``GROUP`` of them.

At four bits what a group shares counts as well, so it takes two bytes: the step on a grid of powers of two, and the
middle of the sixteen levels in quarters of a step. A few steps, some too small for the outermost numbers, are tried,
and the one with the least squared error is kept. ``benchmarks/RESULTS.md`` has what it costs and saves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.store.buffer import Parts

GROUP = 128
"""Most numbers that share a step and a middle at four bits: a whole chunk's tokens, or the heads of a token."""
_LEAST_SCALE = 6.2e-5  # smallest normal fp16: finer steps than this are noise
_PER_OCTAVE, _OCTAVES = 10.0, 12.0
_STEPS = torch.exp2(torch.arange(256) / _PER_OCTAVE - _OCTAVES)
"""The steps that there are, 7 % apart: from 0.0002, below which all is noise, to 11,000, for all that fp16 holds."""
_TRIED = (1.07, 1.0, 0.92, 0.84, 0.76)
"""Of the step that would just reach from the least to the greatest. The first one does, however it is rounded."""
_QUARTERS = 4.0

ALL = slice(None)


def int8_encode(key: Tensor, value: Tensor) -> Parts:
    """``[..., H, T, D]`` each; one fp16 scale per channel of keys, and per token of values."""
    k, k_scale = _symmetric(key, -2)
    v, v_scale = _symmetric(value, -1)
    return {"k": k, "k_scale": k_scale, "v": v, "v_scale": v_scale}


def int8_decode(parts: Parts, dtype: torch.dtype, rows: slice = ALL) -> tuple[Tensor, Tensor]:
    """Inverse of ``int8_encode``, within half a step; of ``rows`` of the outermost dim."""
    parts = {name: part[rows] for name, part in parts.items()}
    # int8 times float32 is float32 in one pass over memory.
    return (parts["k"] * parts["k_scale"].float()).to(dtype), (parts["v"] * parts["v_scale"].float()).to(dtype)


def int4_encode(key: Tensor, value: Tensor) -> Parts:
    """``[..., H, T, D]`` each; two codes per byte, and for each group a uint8 step and an int8 middle.

    Groups of keys are tokens of one channel; those of values are channels of one token, of one head or several.

    Raises:
        InvalidInput: NaN or infinity, or numbers so far apart that no step is large enough.
    """
    heads, tokens, value_dim = value.shape[-3:]
    k_codes, k_step, k_middle = _grouped(key.transpose(-1, -2), *_layout(tokens, GROUP))
    several, width = _layout(heads, max(1, GROUP // value_dim))
    v_codes, v_step, v_middle = _grouped(value.transpose(-2, -3).flatten(-2), several, width * value_dim)
    # Codes lie as the numbers did, so that decoding turns nothing around.
    v_codes = v_codes.reshape(*v_codes.shape[:-1], heads, value_dim).transpose(-2, -3)
    codes = torch.cat([k_codes.transpose(-1, -2).flatten(), v_codes.flatten()])
    half = (codes.numel() + 1) // 2
    # The first half in the low four bits, the second in the high ones: packing and unpacking copy in long runs.
    packed = codes[:half].clone()
    packed[: codes.numel() - half] |= codes[half:] << 4
    # Two codes share a byte, and several heads a group: the shapes cannot be told from the bytes.
    shape = torch.tensor([*key.shape, value_dim], dtype=torch.int32)
    shared = {"step": (k_step, v_step), "middle": (k_middle, v_middle)}
    return {"codes": packed, "shape": shape} | {name: torch.cat([k, v]) for name, (k, v) in shared.items()}


def int4_decode(parts: Parts, dtype: torch.dtype, rows: slice = ALL) -> tuple[Tensor, Tensor]:
    """Inverse of ``int4_encode``; of ``rows`` of the outermost dim. Raises ValueError when the parts do not fit."""
    *outer, heads, tokens, key_dim, value_dim = (int(size) for size in parts["shape"])
    if min(*outer, heads, tokens, key_dim, value_dim) < 1:
        raise ValueError(f"a shape of {parts['shape'].tolist()}")
    (k_several, k_width), (v_several, v_width) = _layout(tokens, GROUP), _layout(heads, max(1, GROUP // value_dim))
    n = math.prod(outer)
    of_row = [heads * tokens * dim for dim in (key_dim, value_dim)]
    groups_of_row = [heads * key_dim * k_several, tokens * v_several]
    packed, step, middle = parts["codes"], parts["step"], parts["middle"]
    total, groups = n * sum(of_row), n * sum(groups_of_row)
    if packed.shape != ((total + 1) // 2,) or step.shape != (groups,) or middle.shape != step.shape:
        raise ValueError(f"{packed.numel()} bytes and {step.numel()} steps for {total} codes in {groups} groups")
    first, last, _ = rows.indices(n)
    if outer:
        outer = [last - first]
    k_codes, v_codes = (_codes(packed, *span) for span in _spans(of_row, n, first, last))
    shared = [(step[slice(*span)], middle[slice(*span)]) for span in _spans(groups_of_row, n, first, last)]
    k_scale, v_scale = (_STEPS[step.int()] for step, _ in shared)
    k_zero, v_zero = (
        scale * (middle.float() / _QUARTERS - 7.5)
        for scale, (_, middle) in zip((k_scale, v_scale), shared, strict=True)
    )

    def of_key(shared: Tensor) -> Tensor:
        """``[..., H, T or 1, D]``"""
        shared = shared.reshape(*outer, heads, key_dim, k_several).transpose(-1, -2)
        return shared if k_several == 1 else shared.repeat_interleave(k_width, -2)[..., :tokens, :]

    def of_value(shared: Tensor) -> Tensor:
        """``[..., H or 1, T, 1]``"""
        shared = shared.reshape(*outer, tokens, v_several).transpose(-1, -2)
        return (shared if v_several == 1 else shared.repeat_interleave(v_width, -2)[..., :heads, :])[..., None]

    key = torch.addcmul(of_key(k_zero), k_codes.reshape(*outer, heads, tokens, key_dim), of_key(k_scale))
    value = torch.addcmul(of_value(v_zero), v_codes.reshape(*outer, heads, tokens, value_dim), of_value(v_scale))
    return key.to(dtype), value.to(dtype)


def _levels(step: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Of each group: the distance of its levels, and the least of them."""
    scale = _STEPS[step.int()]
    return scale, scale * (middle.float() / _QUARTERS - 7.5)


def _spans(sizes: Sequence[int], n: int, first: int, last: int) -> list[tuple[int, int]]:
    """Where rows ``first .. last - 1`` of keys, and of values behind all ``n`` rows of keys, begin and end."""
    k, v = sizes
    return [(first * k, last * k), (n * k + first * v, n * k + last * v)]


def _codes(packed: Tensor, start: int, stop: int) -> Tensor:
    """Codes ``start .. stop - 1`` as float32: those of the first half are low four bits, those of the second high."""
    half = packed.numel()
    edge = min(max(start, half), stop)
    codes = torch.empty(stop - start, dtype=torch.float32)
    codes[: edge - start] = packed[start:edge] & 15
    codes[edge - start :] = packed[edge - half : stop - half] >> 4
    return codes


def _symmetric(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """int8 codes with one scale for all of ``dim``."""
    x = _finite(x)
    # The scale is rounded to fp16 first, and the codes made for the rounded one: no code is clipped by more than
    # half a step, and decoding multiplies by exactly what was divided by.
    scale = (x.abs().amax(dim, keepdim=True) / 127.0).clamp_min(_LEAST_SCALE).half()
    return (x / scale.float()).round_().clamp_(-127, 127).to(torch.int8), scale


def _grouped(x: Tensor, several: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """``several`` groups of ``width`` along the last dim, the last one filled up.

    Codes 0..15 (uint8) of x's shape, and per group its step (uint8) and middle (int8), flat.
    """
    x = _finite(x)
    n = x.shape[-1]
    # Repeating the last number changes no group's least and greatest.
    padded = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], several * width - n)], -1).reshape(-1, width)
    low, high = padded.amin(-1, keepdim=True), padded.amax(-1, keepdim=True)
    centre = (low + high) / 2
    # The middle is at most 127 quarters of a step: far from 0, steps are no finer than that allows.
    least = torch.maximum(centre.abs() * (_QUARTERS / 127), _STEPS[0])
    if bool(((high - low) / 15 > _STEPS[-1]).any()) or bool((least > _STEPS[-1]).any()):
        raise InvalidInput("KV holds numbers that int4 cannot (too large); use bf16 or fp32")
    best: tuple[Tensor, Tensor, Tensor] | None = None
    fewest = padded.new_full((padded.shape[0], 1), math.inf)
    for share in _TRIED:
        wanted = torch.maximum((high - low) * (share / 15), least)
        step = (_PER_OCTAVE * (wanted.log2() + _OCTAVES)).round_().clamp_(0, 255)
        scale = _STEPS[step.long()]
        middle = (centre / scale * _QUARTERS).round_().clamp_(-128, 127)
        zero = scale * (middle / _QUARTERS - 7.5)
        codes = ((padded - zero) / scale).round_().clamp_(0, 15)
        error = (torch.addcmul(zero, codes, scale) - padded).square_().sum(-1, keepdim=True)
        made = codes.to(torch.uint8), step.to(torch.uint8), middle.to(torch.int8)
        better = error < fewest
        best = made if best is None else tuple(torch.where(better, a, b) for a, b in zip(made, best, strict=True))  # type: ignore[assignment]
        fewest = torch.minimum(fewest, error)
    assert best is not None
    codes = best[0].reshape(*x.shape[:-1], several * width)[..., :n]
    return codes, best[1].flatten(), best[2].flatten()


def _layout(n: int, most: int) -> tuple[int, int]:
    """How many groups, and how wide: as few as can be, as equal as can be."""
    groups = math.ceil(n / most)
    return groups, math.ceil(n / groups)


def _finite(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise InvalidInput("KV holds NaN or infinity")
    return x.float()
