"""KV <-> bytes: a safetensors buffer, with the codec's name and the original dtype in its metadata.

Layers of equal shape are stacked (``k [L,H,T,D]``), so that the header stays small; others are kept one by one.
A codec is a row of ``_CODECS``: how one K and one V tensor become named tensors, and back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from agentmem.errors import InvalidInput, PayloadDamaged
from agentmem.store.quantised import Parts, int4_decode, int4_encode, int8_decode, int8_encode
from agentmem.store.quantiser import Codebooks

FORMAT = "agentmem-kv-1"

PQ = "pq"
"""Product quantisation, with codebooks (``quantiser.py``)."""

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
}
_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LONGEST_HEADER = 1_000_000


@dataclass(frozen=True)
class _Codec:
    encode: Callable[[Tensor, Tensor], Parts]
    decode: Callable[[Parts, torch.dtype], tuple[Tensor, Tensor]]


class Unpacked(NamedTuple):
    """What a payload holds; ``KV(*unpacked)`` is the block."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    layers: tuple[int, ...]
    """Numbers of the model layers that the entries belong to; empty: all of them, in order."""
    offsets: tuple[Tensor, ...] | None
    """Per layer, int64 ``[H, T]``: each token's place in the chunk that it was picked from; None: 0, 1, 2, ..."""


def pack(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    codec: str,
    *,
    layers: Sequence[int] = (),
    offsets: Sequence[Tensor] | None = None,
    codebooks: Codebooks | None = None,
) -> bytes:
    """Pack the KV of one memory.

    Args:
        keys: per layer, float32, float16 or bfloat16 ``[H, T, D]``; all of one dtype. Left unchanged.
        values: the same for values.
        codec: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``int4`` (keys by channel, values by token), or ``pq``.
        layers: see ``Unpacked``. Naming every layer in order is the same as naming none.
        offsets: see ``Unpacked``; one byte each while they are below 256.
        codebooks: what ``pq`` packs with; the other codecs need none.

    Raises:
        InvalidInput: unknown codec, shapes or dtypes that do not fit together, or numbers that the codec cannot hold.
    """
    _check(keys, values, codec)
    numbers = _numbers(keys, layers)
    original = keys
    if codec == PQ:
        keys, values = _codes(keys, values, numbers, codebooks)
    dtype = str(original[0].dtype).removeprefix("torch.")
    stacked = len({tuple(t.shape) for t in keys}) == 1 and len({tuple(t.shape) for t in values}) == 1
    columns = (
        [(torch.stack(tuple(keys)), torch.stack(tuple(values)))] if stacked else list(zip(keys, values, strict=True))
    )
    parts: Parts = {}
    for number, (key, value) in enumerate(columns):
        for name, part in _CODECS[codec].encode(key.detach().cpu(), value.detach().cpu()).items():
            if part.is_floating_point() and not torch.isfinite(part).all():
                raise InvalidInput(
                    f"KV holds numbers that {codec} cannot (NaN, infinity or too large); use bf16 or fp32"
                )
            parts[f"{name}.{number}"] = part.contiguous()
    about: dict[str, Any] = {"codec": codec, "dtype": dtype, "layers": len(keys), "stacked": stacked}
    if codebooks is not None and codec == PQ:
        about["codebooks"] = codebooks.digest
    if numbers:
        about["numbers"] = numbers
    if offsets is not None:
        parts["at"] = _flat_offsets(original, offsets)
    # One entry only: the library writes several in random order, and equal KV should have equal bytes.
    return safetensors.torch.save(parts, {FORMAT: json.dumps(about)})


def unpack(data: bytes | bytearray | memoryview, codebooks: Codebooks | None = None) -> Unpacked:
    """The tensors per layer, in the dtype they were packed from.

    Tensors of fp32, fp16 and bf16 payloads are views of ``data`` when it is a bytearray (``load_kv`` hands out those
    for files): no copy is made. Treat them as read-only.

    Raises:
        PayloadDamaged: these bytes are not a whole payload of a known codec, or one of other ``codebooks``.
    """
    about, parts = _parse(data)
    try:
        codec, dtype = _CODECS[about["codec"]], _FLOATS[about["dtype"]]
        n_layers, stacked = int(about["layers"]), bool(about["stacked"])
        places = parts.pop("at", None)
        groups: dict[int, Parts] = {}
        for name, tensor in parts.items():
            part, _, number = name.rpartition(".")
            groups.setdefault(int(number), {})[part] = tensor
        pairs = [codec.decode(groups[number], dtype) for number in range(1 if stacked else n_layers)]
        if stacked:
            pairs = list(zip(pairs[0][0].unbind(0), pairs[0][1].unbind(0), strict=True))
        keys, values = tuple(k for k, _ in pairs), tuple(v for _, v in pairs)
        if len(keys) != n_layers or any(k.dim() != 3 or v.dim() != 3 or k.shape[:2] != v.shape[:2] for k, v in pairs):
            raise ValueError("layers do not fit together")
        numbers = tuple(int(number) for number in about.get("numbers", ()))
        if numbers and (len(numbers) != n_layers or list(numbers) != sorted(set(numbers)) or numbers[0] < 0):
            raise ValueError(f"{n_layers} layers are numbered {numbers}")
        offsets = None if places is None else _split_offsets(keys, places)
        if about["codec"] == PQ:
            if codebooks is None or codebooks.digest != about["codebooks"]:
                raise ValueError("the codebooks that it was packed with are not here")
            keys, values = _decoded(keys, values, numbers, codebooks, dtype)
        return Unpacked(keys, values, numbers, offsets)
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise PayloadDamaged(
            f"a KV payload does not hold what its header says ({error}); re-encode it from text"
        ) from error


def bytes_per_token(codec: str, layers: int, kv_heads: int, head_dim: int, tokens: int = 128) -> float:
    """What a codec makes of one token's keys and values, in memories of so many tokens.

    Found by packing one layer. Not counted: a payload's header, of 300 to 700 bytes.

    Raises:
        InvalidInput: a codec that there is not, or one that needs codebooks.
    """
    layer = [torch.zeros(kv_heads, tokens, head_dim)]
    _, parts = _parse(pack(layer, layer, codec))
    return layers * sum(part.nbytes for name, part in parts.items() if name != "shape.0") / tokens


def _codes(
    keys: Sequence[Tensor], values: Sequence[Tensor], numbers: Sequence[int], codebooks: Codebooks | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Codes per layer, uint8 ``[H, T, bytes]``."""
    layers = numbers or range(len(keys))
    if codebooks is None or not set(layers) <= set(codebooks.layers):
        raise InvalidInput(
            f"there are no codebooks for the KV of layers {list(layers)}; compress the store to train them"
        )
    pairs = [codebooks.layers[layer] for layer in layers]
    if any(
        pair[i].rotation.shape[0] != t.shape[-1] or not torch.isfinite(t).all()
        for i, tensors in enumerate((keys, values))
        for pair, t in zip(pairs, tensors, strict=True)
    ):
        raise InvalidInput("KV holds NaN or infinity, or is of other dims than its codebooks")
    return (
        [pair[0].encode(key.detach().cpu()) for pair, key in zip(pairs, keys, strict=True)],
        [pair[1].encode(value.detach().cpu()) for pair, value in zip(pairs, values, strict=True)],
    )


def _decoded(
    keys: Sequence[Tensor], values: Sequence[Tensor], numbers: Sequence[int], codebooks: Codebooks, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    pairs = [codebooks.layers[layer] for layer in numbers or range(len(keys))]
    return (
        tuple(pair[0].decode(codes).to(dtype) for pair, codes in zip(pairs, keys, strict=True)),
        tuple(pair[1].decode(codes).to(dtype) for pair, codes in zip(pairs, values, strict=True)),
    )


def _numbers(keys: Sequence[Tensor], layers: Sequence[int]) -> list[int]:
    """Layer numbers worth writing down: none when they are 0, 1, 2, ..."""
    numbers = [int(layer) for layer in layers]
    if numbers and (len(numbers) != len(keys) or numbers != sorted(set(numbers)) or numbers[0] < 0):
        raise InvalidInput(f"layers must be {len(keys)} ascending numbers from 0, not {numbers}")
    return [] if numbers == list(range(len(keys))) else numbers


def _flat_offsets(keys: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
    """All layers' offsets in one row of bytes (or int32, where a chunk was longer)."""
    if [tuple(offset.shape) for offset in offsets] != [tuple(key.shape[:2]) for key in keys]:
        raise InvalidInput(f"offsets must be [heads, tokens] per layer, not {[tuple(o.shape) for o in offsets]}")
    flat = torch.cat([offset.detach().cpu().flatten() for offset in offsets])
    if flat.is_floating_point() or int(flat.min()) < 0:
        raise InvalidInput("offsets must be whole numbers from 0")
    return flat.to(torch.uint8 if int(flat.max()) < 256 else torch.int32)


def _split_offsets(keys: Sequence[Tensor], flat: Tensor) -> tuple[Tensor, ...]:
    sizes = [key.shape[0] * key.shape[1] for key in keys]
    rows = torch.split(flat.to(torch.int64).reshape(-1), sizes)
    if len(rows) != len(keys) or bool((flat < 0).any()):
        raise ValueError("offsets do not fit the layers")
    return tuple(row.reshape(key.shape[:2]) for row, key in zip(rows, keys, strict=True))


def _check(keys: Sequence[Tensor], values: Sequence[Tensor], codec: str) -> None:
    if codec not in _CODECS:
        raise InvalidInput(f"unknown codec {codec!r}; use one of {', '.join(_CODECS)}")
    if not keys or len(keys) != len(values):
        raise InvalidInput(f"{len(keys)} layers of keys and {len(values)} of values; both must be given for each layer")
    dtypes = {tensor.dtype for tensor in (*keys, *values)}
    if len(dtypes) != 1 or dtypes.isdisjoint(_FLOATS.values()):
        raise InvalidInput(f"KV must be of one dtype, float32, float16 or bfloat16, not {sorted(map(str, dtypes))}")
    for key, value in zip(keys, values, strict=True):
        if (
            key.dim() != 3
            or value.dim() != 3
            or key.shape[:2] != value.shape[:2]
            or not key.numel()
            or not value.numel()
        ):
            raise InvalidInput(
                f"keys and values are [heads, tokens, dim], not {tuple(key.shape)} and {tuple(value.shape)}"
            )


def _parse(data: bytes | bytearray | memoryview) -> tuple[dict[str, Any], Parts]:
    """Read a safetensors buffer in place. (The library's own ``load`` copies, and drops the metadata.)"""
    # torch warns about buffers that cannot be written, though nobody here writes.
    buffer = data if isinstance(data, bytearray) else bytearray(data)
    try:
        length = int.from_bytes(buffer[:8], "little")
        if len(buffer) < 8 or not 0 < length <= min(_LONGEST_HEADER, len(buffer) - 8):
            raise ValueError(f"header of {length} bytes in a buffer of {len(buffer)}")
        header: dict[str, Any] = json.loads(buffer[8 : 8 + length])
        about: dict[str, Any] = json.loads(header["__metadata__"][FORMAT])
        parts, end = {}, 8 + length
        for name, entry in header.items():
            if name != "__metadata__":
                parts[name], end = _tensor(buffer, 8 + length, entry, end)
        if end != len(buffer):
            raise ValueError(f"{len(buffer) - end} bytes too many")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PayloadDamaged(f"not a KV payload ({error}); re-encode it from text") from error
    return about, parts


def _tensor(buffer: bytearray, base: int, entry: dict[str, Any], end: int) -> tuple[Tensor, int]:
    dtype, shape = _DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
    start, stop = (base + int(offset) for offset in entry["data_offsets"])
    count = math.prod(shape)
    if min(shape, default=0) < 1 or not base <= start <= stop <= len(buffer) or stop - start != count * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} from {start} to {stop} in a buffer of {len(buffer)} bytes")
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start).reshape(shape), max(end, stop)


def _cast(dtype: torch.dtype) -> _Codec:
    return _Codec(
        encode=lambda key, value: {"k": key.to(dtype), "v": value.to(dtype)},
        decode=lambda parts, original: (parts["k"].to(original), parts["v"].to(original)),
    )


_CODECS = {
    "fp32": _cast(torch.float32),
    "fp16": _cast(torch.float16),
    "bf16": _cast(torch.bfloat16),
    "int8": _Codec(int8_encode, int8_decode),
    "int4": _Codec(int4_encode, int4_decode),
    PQ: _Codec(lambda key, value: {"k": key, "v": value}, lambda parts, _: (parts["k"], parts["v"])),
}

CODECS = tuple(name for name in _CODECS if name != PQ)
"""Names of the codecs that need nothing but the KV."""
