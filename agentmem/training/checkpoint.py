"""Checkpoints without pickle: named tensors in one file, numbers and names in another, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentmem.errors import InvalidInput

_LATEST = "latest.json"


def save(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint beside the one before, make it the latest, then remove the one before.

    ``state`` is plain JSON with a "step". A run that is killed at any moment finds one whole checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{state['step']}"
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    beside = folder / f"{_LATEST}.new"
    beside.write_text(json.dumps({"tensors": f"{name}.safetensors", "state": dict(state)}), encoding="utf-8")
    os.replace(beside, folder / _LATEST)
    for old in folder.glob("step-*.safetensors"):
        if old.name != f"{name}.safetensors":
            old.unlink()


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the latest checkpoint, or None when there is none yet.

    Raises:
        InvalidInput: it is damaged.
    """
    if not (folder / _LATEST).exists():
        return None
    try:
        latest = json.loads((folder / _LATEST).read_text(encoding="utf-8"))
        return load_file(folder / latest["tensors"]), latest["state"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InvalidInput(
            f"the checkpoint in {str(folder)!r} is damaged ({error}); remove it to start anew"
        ) from error


def remove(folder: Path) -> None:
    """Remove all checkpoints of a run that has come to its end."""
    shutil.rmtree(folder, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter, as named tensors."""
    return {
        f"{parameter}.{name}": value
        for parameter, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give it back what ``optimizer_tensors`` took."""
    whole = optimizer.state_dict()
    for key, value in tensors.items():
        parameter, name = key.split(".")
        whole["state"].setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict(whole)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix.``, without it."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors with ``prefix.`` before their names: what ``under`` takes off."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}
