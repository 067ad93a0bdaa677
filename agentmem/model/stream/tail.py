"""What of a stream is in no block, as one safetensors buffer: the window, the sinks and the counters."""

from __future__ import annotations

import json
from collections.abc import Sequence

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from agentmem.errors import PayloadDamaged
from agentmem.model.stream.layer import LayerState
from agentmem.model.stream.layout import Layout

_FORMAT = "agentmem-stream-1"
_WINDOW = ("raw", "values", "mass")
_SINKS = ("sink_keys", "sink_values")

Parts = list[dict[str, Tensor]]
"""Per layer, the tensors by name."""


def write_tail(layers: Sequence[LayerState], n: int, about: dict[str, int]) -> bytes:
    """The first ``n`` tokens of every layer's window, its sinks, and counters."""
    tensors: dict[str, Tensor] = {}
    for number, state in enumerate(layers):
        tensors |= {f"{name}.{number}": getattr(state, name)[:, :n] for name in _WINDOW}
        tensors |= {f"{name}.{number}": getattr(state, name) for name in _SINKS}
    parts = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(parts, {_FORMAT: json.dumps(about)})


def read_tail(
    tail: bytes | bytearray, index: bytes | bytearray, layers: Sequence[LayerState], layout: Layout
) -> tuple[dict[str, int], Parts, Tensor]:
    """Counters, tensors per layer, and representative keys (blocks, numbers), checked against what ``layers`` can take.

    Raises:
        PayloadDamaged: these bytes are not the tail and index of such a stream.
    """
    try:
        header = json.loads(tail[8 : 8 + int.from_bytes(tail[:8], "little")])
        about = {name: int(value) for name, value in json.loads(header["__metadata__"][_FORMAT]).items()}
        tensors = safetensors.torch.load(bytes(tail))
        n, parts = about["n_tokens"] - about["start"], []
        if len(index) != about["kept"] * layout.index_bytes:
            raise ValueError(f"{len(index)} bytes of index for {about['kept']} blocks")
        entries = torch.frombuffer(bytearray(index), dtype=torch.float32) if index else torch.zeros(0)
        for number, state in enumerate(layers):
            layer = {name: tensors[f"{name}.{number}"] for name in (*_WINDOW, *_SINKS)}
            for name, part in layer.items():
                like = getattr(state, name)
                length = n if name in _WINDOW else like.shape[1]
                if part.shape != (like.shape[0], length, *like.shape[2:]) or part.dtype != like.dtype:
                    raise ValueError(f"{name} of layer {number} is {tuple(part.shape)}, {part.dtype}")
            parts.append(layer)
    except (KeyError, ValueError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise PayloadDamaged(f"not the tail of such a stream ({error}); encode it anew from its text") from error
    return about, parts, entries.view(about["kept"], layout.index_bytes // 4)
