"""KV <-> bytes: a safetensors buffer, with the codec's name and the original dtype in its metadata.

Layers of equal shape are stacked (``k [L,H,T,D]``), so that the header stays small; others are kept one by one.
A codec is a row of ``_CODECS``: how one K and one V tensor become named tensors, and back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from agentmem.errors import InvalidInput, PayloadDamaged
from agentmem.store.buffer import FORMAT, Parts, parse
from agentmem.store.quantised import ALL, int4_decode, int4_encode, int8_decode, int8_encode
from agentmem.store.quantiser import Codebooks

PQ = "pq"
"""Product quantisation, with codebooks (``quantiser.py``)."""

_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class _Codec:
    encode: Callable[[Tensor, Tensor], Parts]
    decode: Callable[[Parts, torch.dtype, slice], tuple[Tensor, Tensor]]


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
    packed = PackedKV(data, codebooks)
    return packed.read(0, len(packed.layers))


class PackedKV:
    """A payload that was looked over, to be decoded a few layers at a time.

    ``layers`` are the numbers of its model layers, ``offsets`` as in ``Unpacked``; ``nbytes`` is its size, packed.

    Raises:
        PayloadDamaged: as ``unpack``; reading it raises no more.
    """

    def __init__(self, data: bytes | bytearray | memoryview, codebooks: Codebooks | None = None):
        about, parts = parse(data)
        self.nbytes = len(data)
        with _as_damaged():
            self._codec, self._dtype = _CODECS[about["codec"]], _FLOATS[about["dtype"]]
            n_layers, stacked = int(about["layers"]), bool(about["stacked"])
            numbers = tuple(int(number) for number in about.get("numbers", ()))
            if numbers and (len(numbers) != n_layers or list(numbers) != sorted(set(numbers)) or numbers[0] < 0):
                raise ValueError(f"{n_layers} layers are numbered {numbers}")
            self._numbers = numbers
            places = parts.pop("at", None)
            groups: dict[int, Parts] = {}
            for name, tensor in parts.items():
                part, _, number = name.rpartition(".")
                groups.setdefault(int(number), {})[part] = tensor
            self._stack = groups[0]
            self._decoded: list[tuple[Tensor, Tensor]] | None = None
            self.offsets: tuple[Tensor, ...] | None = None
            if stacked and places is None and about["codec"] != PQ:
                if len(self._rows(slice(n_layers - 1, None))) != 1:  # layers are of one shape, so the last tells
                    raise ValueError("layers do not fit together")
            else:
                several = [groups[number] for number in range(1 if stacked else n_layers)]
                pairs = [pair for one in several for pair in self._pairs(one, ALL, stacked)]
                if len(pairs) != n_layers:
                    raise ValueError("layers do not fit together")
                if places is not None:
                    self.offsets = _split_offsets([key for key, _ in pairs], places)
                if about["codec"] == PQ:
                    if codebooks is None or codebooks.digest != about["codebooks"]:
                        raise ValueError("the codebooks that it was packed with are not here")
                    pairs = _decoded(pairs, numbers or range(n_layers), codebooks, self._dtype)
                self._decoded = pairs
            self.layers = numbers or tuple(range(n_layers))

    def read(self, start: int, stop: int) -> Unpacked:
        """Entries ``start .. stop - 1`` of ``layers``."""
        span = slice(start, stop)
        pairs = self._rows(span) if self._decoded is None else self._decoded[span]
        keys, values = tuple(key for key, _ in pairs), tuple(value for _, value in pairs)
        whole = (start, stop) == (0, len(self.layers))
        layers = self._numbers if whole else self.layers[span]
        return Unpacked(keys, values, layers, None if self.offsets is None else self.offsets[span])

    def _rows(self, rows: slice) -> list[tuple[Tensor, Tensor]]:
        return self._pairs(self._stack, rows, stacked=True)

    def _pairs(self, parts: Parts, rows: slice, stacked: bool) -> list[tuple[Tensor, Tensor]]:
        keys, values = self._codec.decode(parts, self._dtype, rows)
        pairs = list(zip(keys.unbind(0), values.unbind(0), strict=True)) if stacked else [(keys, values)]
        if any(k.dim() != 3 or v.dim() != 3 or k.shape[:2] != v.shape[:2] for k, v in pairs):
            raise ValueError("layers do not fit together")
        return pairs


@contextmanager
def _as_damaged() -> Iterator[None]:
    """Whatever does not fit while bytes are looked over means that they are damaged."""
    try:
        yield
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
    _, parts = parse(pack(layer, layer, codec))
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
    codes: Sequence[tuple[Tensor, Tensor]], layers: Sequence[int], codebooks: Codebooks, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    books = [codebooks.layers[layer] for layer in layers]
    return [
        (of_keys.decode(key).to(dtype), of_values.decode(value).to(dtype))
        for (of_keys, of_values), (key, value) in zip(books, codes, strict=True)
    ]


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


def _cast(dtype: torch.dtype) -> _Codec:
    return _Codec(
        encode=lambda key, value: {"k": key.to(dtype), "v": value.to(dtype)},
        decode=lambda parts, original, rows: (parts["k"][rows].to(original), parts["v"][rows].to(original)),
    )


_CODECS = {
    "fp32": _cast(torch.float32),
    "fp16": _cast(torch.float16),
    "bf16": _cast(torch.bfloat16),
    "int8": _Codec(int8_encode, int8_decode),
    "int4": _Codec(int4_encode, int4_decode),
    PQ: _Codec(lambda key, value: {"k": key, "v": value}, lambda parts, _, rows: (parts["k"][rows], parts["v"][rows])),
}

CODECS = tuple(name for name in _CODECS if name != PQ)
"""Names of the codecs that need nothing but the KV."""
