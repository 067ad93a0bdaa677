"""A tuning run from files to files: read, tune with checkpoints and a log, write an adapter and a model."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from agentmem.errors import InvalidInput
from agentmem.model.local import LocalModel
from agentmem.recipes.memlong import CONFIG_KEY, MemLong
from agentmem.retrieval import get_embedder
from agentmem.training import checkpoint
from agentmem.training.bundled import steps_of
from agentmem.training.histories import cut
from agentmem.training.memlong import Tuner, Tuning
from agentmem.training.statements import strewn
from agentmem.training.texts import read_documents

CHECKPOINT, ADAPTER, MERGED, LOG = "checkpoint", "adapter", "model", "log.jsonl"
"""What is in the output folder."""


def tune(
    model: str | Path,
    texts: Sequence[Path],
    out: Path,
    recipe: MemLong,
    tuning: Tuning,
    *,
    embedder: str | None = None,
    device: str | None = None,
    every: int = 100,
    console: Console | None = None,
) -> Path:
    """Tune ``model`` on the documents of ``texts``; run again after an interruption, and it goes on.

    Writes to ``out``: ``log.jsonl`` (a line per step: step, loss in nats, rate, seconds), ``adapter`` (peft) and
    ``model``, with the adapter merged in and the recipe's settings in its config, which
    ``MemoryLLM(out / "model", recipe="memlong")`` opens. A checkpoint every ``every`` steps, until the end.

    Args:
        model: hub id or folder of a model whose attention has q, k, v and o matrices.
        texts: files as ``read_documents`` takes them. Each document is a history of its own.
        out: folder, made if need be.
        recipe: what is stored, what reads it, where, and how much.
        tuning: see ``Tuning``.
        embedder: None for the model's own hidden states (before tuning), or the name of a sentence-transformers model.
        device: as torch names it; None for CUDA if there is a GPU, else the CPU.
        every: steps between checkpoints.
        console: where the progress bar goes.

    Returns:
        The folder of the merged model.

    Raises:
        InvalidInput: files, settings or a checkpoint that cannot be used, or a loss that is no number.
        ModelLoadError, UnsupportedModel: the model cannot be loaded, or its keys cannot be moved.
    """
    rng = random.Random(tuning.seed)
    documents = [strewn(document, tuning.statements, rng) for document in read_documents(texts)]
    local = LocalModel.load(model, device=device)
    tuner = Tuner(local, recipe, get_embedder(embedder, local), cut(documents, local), tuning)
    out.mkdir(parents=True, exist_ok=True)
    if (found := checkpoint.load(out / CHECKPOINT)) is not None:
        tuner.restore(*found)
    _cut_log(out / LOG, tuner.step)
    began = time.monotonic()
    with (out / LOG).open("a", encoding="utf-8") as log:
        for step in steps_of(tuner.step, tuning.steps, console or Console(stderr=True)):
            loss = tuner.run_step()
            if loss != loss:
                raise InvalidInput(f"the loss of step {step} is no number; lower the learning rate ({tuning.rate})")
            seconds = round(time.monotonic() - began, 1)
            line = {"step": step, "loss": round(loss, 5), "rate": tuning.rate_at(step), "seconds": seconds}
            log.write(json.dumps(line) + "\n")
            if (step + 1) % every == 0 or step + 1 == tuning.steps:
                log.flush()
                checkpoint.save(out / CHECKPOINT, tuner.tensors(), tuner.state())
    return export(tuner, out)


def export(tuner: Tuner, out: Path) -> Path:
    """Write the adapter, then the model with the adapter merged in. The tuner is of no use after that."""
    tuner.peft.save_pretrained(out / ADAPTER, safe_serialization=True)
    merged = tuner.peft.merge_and_unload()
    if tuner.tuning.memory:
        layout = tuner.layout
        settings = {
            "memory_layer": layout.memory_layer,
            "retrieval_layers": list(layout.retrieval_layers),
            "positions": layout.positions,
        }
        setattr(merged.config, CONFIG_KEY, settings)
    merged.save_pretrained(out / MERGED)
    tuner.model.tokenizer.save_pretrained(out / MERGED)
    return out / MERGED


def _cut_log(path: Path, step: int) -> None:
    """Leave only the lines of the steps that the checkpoint has: those after it are run again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
