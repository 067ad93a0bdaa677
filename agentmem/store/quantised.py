"""Eight and four bits per number: keys by channel, values by token (KIVI, arXiv 2402.02750).

Keys have channels of outliers that last over tokens, values vary from token to token. So a scale is shared by numbers
of one channel (keys) or of one token (values), and at four bits by a group of at most ``GROUP`` of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agentmem.errors import InvalidInput

GROUP = 64
"""Most numbers that share a scale and a zero at four bits."""
_LEAST_SCALE = 6.2e-5  # smallest normal fp16: finer steps than this are noise
_HIGHEST = 15

Parts = dict[str, Tensor]


def int8_encode(key: Tensor, value: Tensor) -> Parts:
    """``[..., H, T, D]`` each; one fp16 scale per channel of keys, and per token of values."""
    k, k_scale = _symmetric(key, -2)
    v, v_scale = _symmetric(value, -1)
    return {"k": k, "k_scale": k_scale, "v": v, "v_scale": v_scale}


def int8_decode(parts: Parts, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inverse of ``int8_encode``, within half a step."""
    # int8 times float32 is float32 in one pass over memory.
    return (parts["k"] * parts["k_scale"].float()).to(dtype), (parts["v"] * parts["v_scale"].float()).to(dtype)


def int4_encode(key: Tensor, value: Tensor) -> Parts:
    """``[..., H, T, D]`` each; an fp16 scale and an fp16 zero per group, two codes per byte."""
    k = _grouped(key.transpose(-1, -2))
    v = _grouped(value)
    # The last group is padded, and two codes share a byte: the shapes cannot be told from the bytes.
    shape = torch.tensor([*key.shape, value.shape[-1]], dtype=torch.int32)
    return (
        {f"k_{name}": part for name, part in k.items()}
        | {f"v_{name}": part for name, part in v.items()}
        | {"shape": shape}
    )


def int4_decode(parts: Parts, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inverse of ``int4_encode``, within half a step. Raises ValueError when the parts do not fit together."""
    *outer, tokens, key_dim, value_dim = (int(size) for size in parts["shape"])
    if not outer or min(*outer, tokens, key_dim, value_dim) < 1:
        raise ValueError(f"a shape of {parts['shape'].tolist()}")
    key = _ungrouped(parts, "k", [*outer, key_dim, tokens])
    value = _ungrouped(parts, "v", [*outer, tokens, value_dim])
    return key.transpose(-1, -2).to(dtype).contiguous(), value.to(dtype)


def _symmetric(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """int8 codes with one scale for all of ``dim``."""
    x = _finite(x)
    # The scale is rounded to fp16 first, and the codes made for the rounded one: no code is clipped by more than
    # half a step, and decoding multiplies by exactly what was divided by.
    scale = (x.abs().amax(dim, keepdim=True) / 127.0).clamp_min(_LEAST_SCALE).half()
    return (x / scale.float()).round_().clamp_(-127, 127).to(torch.int8), scale


def _grouped(x: Tensor) -> Parts:
    """Groups along the last dim ``n``: codes uint8 (half as many as numbers), scales and zeros ``[..., groups]``."""
    x = _finite(x)
    n = x.shape[-1]
    groups, width = _layout(n)
    # Repeating the last number changes no group's least and greatest.
    padded = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], groups * width - n)], -1)
    padded = padded.reshape(*x.shape[:-1], groups, width)
    zero = padded.amin(-1, keepdim=True).half()
    scale = ((padded.amax(-1, keepdim=True) - zero.float()) / _HIGHEST).clamp_min(_LEAST_SCALE).half()
    codes = ((padded - zero.float()) / scale.float()).round_().clamp_(0, _HIGHEST).to(torch.uint8).flatten()
    half = (codes.numel() + 1) // 2
    low, high = codes[:half], codes[half:]
    # The first half in the low four bits, the second in the high ones: packing and unpacking copy in long runs.
    packed = low.clone()
    packed[: high.numel()] |= high << 4
    return {"codes": packed, "scale": scale.squeeze(-1), "zero": zero.squeeze(-1)}


def _ungrouped(parts: Parts, name: str, shape: list[int]) -> Tensor:
    """float32 of ``shape``."""
    packed, scale, zero = (parts[f"{name}_{part}"] for part in ("codes", "scale", "zero"))
    groups, width = _layout(shape[-1])
    count = math.prod(shape[:-1]) * groups * width
    if packed.dim() != 1 or packed.numel() != (count + 1) // 2:
        raise ValueError(f"{packed.numel()} bytes for {count} codes")
    codes = torch.cat([packed & _HIGHEST, packed >> 4])[:count].reshape(*shape[:-1], groups, width)
    numbers = torch.addcmul(zero.float()[..., None], codes.float(), scale.float()[..., None])
    return numbers.flatten(-2)[..., : shape[-1]]


def _layout(n: int) -> tuple[int, int]:
    """How many groups, and how wide: as few as can be, as equal as can be."""
    groups = math.ceil(n / GROUP)
    return groups, math.ceil(n / groups)


def _finite(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise InvalidInput("KV holds NaN or infinity")
    return x.float()
