"""What a stored KV is a function of, as one hash: weights, tokenizer, template, rotary config, dtype, format."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

KV_FORMAT = 1
"""Raise when the meaning of stored keys and values changes."""

_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
"""Config entries that do not change what the model computes."""


def model_fingerprint(model: PreTrainedModel, tokenizer: Any) -> str:
    """sha256, hex, over every weight byte and everything else that a chunk's KV depends on.

    The same checkpoint gives the same fingerprint wherever it was loaded from, if it is loaded in the same dtype.
    """
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in _VOLATILE}
    identity = {
        "format": KV_FORMAT,
        "dtype": str(model.dtype),
        "config": config,
        "weights": _weights(model),
        "tokenizer": _tokenizer(tokenizer),
        "template": tokenizer.chat_template or "",
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def kv_fingerprint(model_hash: str, recipe_identity: str) -> str:
    """sha256, hex, of a model's fingerprint and of what identifies the way KV is written."""
    return hashlib.sha256(f"{model_hash}\n{recipe_identity}".encode()).hexdigest()


def _weights(model: PreTrainedModel) -> list[tuple[str, str, tuple[int, ...], str]]:
    named = sorted(model.state_dict().items())
    # hashlib lets other threads run, so a few of them hash a large model at memory speed.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_digest, [tensor for _, tensor in named]))
    return [
        (name, str(tensor.dtype), tuple(tensor.shape), digest)
        for (name, tensor), digest in zip(named, digests, strict=True)
    ]


def _digest(tensor: Tensor) -> str:
    raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def _tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        spec = json.loads(backend.to_str())
        spec.pop("padding", None)  # how the last call padded and cut is not part of the tokenizer
        spec.pop("truncation", None)
    else:
        spec = {"vocab": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map, "class": str(type(tokenizer))}
    return hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()
