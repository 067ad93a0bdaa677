"""Open a Hugging Face causal language model and its tokenizer, or say plainly why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from agentmem.errors import InvalidInput, ModelLoadError

_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the class names of generating checkpoints end, in a config's ``architectures``."""


def load(
    name_or_path: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, Any]:
    """Model (in eval mode, without gradients) and tokenizer of a hub id or a local folder.

    Code from the checkpoint is never run and pickled weights are never read: only safetensors.

    Args:
        name_or_path: a folder, or a hub id such as ``"Qwen/Qwen3-0.6B"``.
        device: ``cuda`` if there is one, else ``cpu``.
        dtype: the checkpoint's on a GPU, float32 on a CPU (where bfloat16 is slow and less exact).

    Raises:
        ModelLoadError: no such folder or id, no config, weights or tokenizer in it, or not a decoder-only model.
        InvalidInput: no such device.
    """
    name = str(name_or_path)
    place = _device(device)
    if _is_folder(name):
        _check_folder(Path(name).expanduser())
        name = str(Path(name).expanduser())
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"{name!r} is not a local folder with a model, and no model config of that name could be read: {error}"
        ) from error
    _check_config(name, config)
    wanted: torch.dtype | str = dtype or ("auto" if place.type == "cuda" else torch.float32)
    try:
        with _without_progress_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                name, dtype=wanted, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelLoadError(f"the weights of {name!r} could not be loaded (safetensors only): {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"the checkpoint {name!r} lacks {len(missing)} of the model's weights, the first is {missing[0]!r}; "
            "it is incomplete or of another architecture"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"no usable tokenizer in {name!r}: {error}") from error
    if len(tokenizer) == 0:
        raise ModelLoadError(f"the tokenizer of {name!r} has no vocabulary; save the tokenizer beside the model")
    model.requires_grad_(False)
    return model.eval().to(place), tokenizer


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(f"{device!r} is not a device; use 'cpu', 'cuda' or 'cuda:0'") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f"device {device!r} was asked for, but torch sees no CUDA device; use 'cpu'")
    return place


def _is_folder(name: str) -> bool:
    """A path rather than a hub id (``name`` or ``owner/name``)."""
    if not name.strip():
        raise ModelLoadError("the model's name is empty; give a hub id or a folder")
    path = Path(name).expanduser()
    return path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise ModelLoadError(f"the model folder {str(path)!r} {what}; give a folder that save_pretrained wrote")
    if not (path / "config.json").is_file():
        raise ModelLoadError(f"the folder {str(path)!r} has no config.json; give a folder that save_pretrained wrote")
    try:
        json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"config.json in {str(path)!r} is not JSON: {error}") from error
    if not any(path.glob("*.safetensors")):
        pickled = any(path.glob("*.bin")) or any(path.glob("*.pt"))
        hint = "it has pickled weights only, which are never read: convert them" if pickled else "it has no weights"
        raise ModelLoadError(f"the folder {str(path)!r} has no *.safetensors file: {hint}")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")):
        raise ModelLoadError(f"the folder {str(path)!r} has no tokenizer; save the tokenizer beside the model")


def _check_config(name: str, config: Any) -> None:
    architectures = list(getattr(config, "architectures", None) or ())
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(
            f"{name!r} ({config.model_type}) is an encoder-decoder model; a decoder-only one is needed"
        )
    if architectures and not any(entry.endswith(_GENERATIVE) for entry in architectures):
        raise ModelLoadError(
            f"{name!r} ({', '.join(architectures)}) does not generate text from left to right; use a decoder-only "
            "causal language model (Llama, Qwen2/3, Mistral, Gemma, Phi, OLMo, SmolLM)"
        )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """A library does not write to the terminal of whoever uses it."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
