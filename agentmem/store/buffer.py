"""A payload's outer form: a safetensors buffer that is read in place, with what it holds described in its metadata."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from agentmem.errors import PayloadDamaged

FORMAT = "agentmem-kv-1"
"""Name of the metadata entry that describes a payload, as JSON."""

Parts = dict[str, Tensor]

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
}
_LONGEST_HEADER = 1_000_000


def parse(data: bytes | bytearray | memoryview) -> tuple[dict[str, Any], Parts]:
    """What the metadata says, and the tensors, as views of a bytearray.

    (The library's own ``load`` copies, and drops the metadata.)

    Raises:
        PayloadDamaged: this is no such buffer, or not all of one.
    """
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
