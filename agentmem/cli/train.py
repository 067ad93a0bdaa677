"""``agentmem train``: tune a model to read memory."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from agentmem.cli.output import err, note, progress
from agentmem.errors import InvalidInput

app = typer.Typer(
    name="train", help="Tune a model of your own to read memory (extra: agentmem-kv[train]).", no_args_is_help=True
)

Texts = Annotated[
    list[Path],
    typer.Option("--text", help="A document (.txt, .md), or one per line (.jsonl, key text); may be repeated."),
]
Base = Annotated[str, typer.Option("--model", help="Hugging Face id or local folder to start from.")]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Log, checkpoint, adapter and model; made.")]
Device = Annotated[str | None, typer.Option("--device", help="cuda, cpu, ...", show_default="a GPU if there is one")]


def need_extra() -> None:
    """Raise InvalidInput, with what to install, when the training extra is missing."""
    if missing := [name for name in ("peft",) if find_spec(name) is None]:
        raise InvalidInput(f"training needs {', '.join(missing)}: pip install 'agentmem-kv[train]'")


@app.command("memlong")
def memlong(
    model: Base,
    texts: Texts,
    out: Out,
    steps: Annotated[int, typer.Option("--steps", help="Steps in all.")] = 1000,
    streams: Annotated[int, typer.Option("--streams", help="Documents read side by side, a chunk each per step.")] = 8,
    window: Annotated[int, typer.Option("--window", help="Tokens in context, the predicted chunk included.")] = 1024,
    rate: Annotated[float, typer.Option("--rate", help="Peak learning rate.")] = 5e-5,
    rank: Annotated[int, typer.Option("--rank", help="Rank of LoRA.")] = 64,
    alpha: Annotated[int, typer.Option("--alpha", help="Scale of LoRA, times the rank.")] = 8,
    dropout: Annotated[float, typer.Option("--dropout", help="Dropout of LoRA.")] = 0.05,
    top_k: Annotated[int, typer.Option("--top-k", help="Chunks read at once.")] = 8,
    memory_layer: Annotated[
        int | None, typer.Option("--memory-layer", help="Layer that is stored.", show_default="the middle one")
    ] = None,
    retrieval_layers: Annotated[
        list[int] | None,
        typer.Option("--retrieval-layer", help="Layer that reads it; may be repeated.", show_default="four from there"),
    ] = None,
    positions: Annotated[str, typer.Option("--positions", help="zero or contiguous.")] = "zero",
    capacity: Annotated[int, typer.Option("--capacity", help="Chunks kept of a document.")] = 256,
    statements: Annotated[
        int, typer.Option("--statements", help="Made-up statements to strew into each document, over and over.")
    ] = 0,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="--no-memory: LoRA and nothing else.")] = True,
    embedder: Annotated[
        str | None,
        typer.Option("--embedder", help="A sentence-transformers model.", show_default="the model's hidden states"),
    ] = None,
    device: Device = None,
    every: Annotated[int, typer.Option("--every", help="Steps between checkpoints.")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Of data order, dropout and statements.")] = 0,
) -> None:
    """Tune a model to read its past by the memlong recipe; run again after an interruption, and it goes on.

    The layers up to the memory layer stay as they are; the attention of those above gets LoRA. Open the result with
    MemoryLLM("FOLDER/model", recipe="memlong").
    """
    need_extra()
    # Imported here: torch, transformers and peft take seconds.
    from transformers.utils.logging import disable_progress_bar

    from agentmem.recipes.memlong import MemLong
    from agentmem.training.memlong import Tuning
    from agentmem.training.tune import tune

    disable_progress_bar()  # of loading weights, which would break into ours
    recipe = MemLong(
        memory_layer=memory_layer,
        retrieval_layers=None if not retrieval_layers else tuple(retrieval_layers),
        positions=positions,  # type: ignore[arg-type]  # MemLong refuses other words
        top_k=top_k,
    )
    tuning = Tuning(
        steps=steps,
        streams=streams,
        window=window,
        rate=rate,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        capacity=capacity,
        statements=statements,
        memory=memory,
        seed=seed,
    )
    merged = tune(model, texts, out, recipe, tuning, embedder=embedder, device=device, every=every, console=err)
    note(f"written: {merged}")


@app.command("memory3")
def memory3(
    out: Out,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Llama-like model to start from, or: bundled.", show_default="a new one"),
    ] = None,
    hidden: Annotated[int, typer.Option("--hidden", help="Hidden size of a new model.")] = 128,
    layers: Annotated[
        int | None,
        typer.Option("--layers", help="Layers; a model that has fewer gets more.", show_default="as many as it has; 4"),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps in all.")] = 450,
    warm_up: Annotated[int, typer.Option("--warm-up", help="Of these, steps without memory, at the start.")] = 40,
    strings: Annotated[
        int, typer.Option("--strings", help="Of these, steps of repeated random strings: a new model needs 100.")
    ] = 0,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Memory from the first step on, without any warm-up.")
    ] = False,
    keep: Annotated[int, typer.Option("--keep", help="Tokens kept per KV head.")] = 8,
    sets: Annotated[int, typer.Option("--sets", help="Sets of references a step.")] = 2,
    rows: Annotated[int, typer.Option("--rows", help="Contexts that share a set.")] = 4,
    rate: Annotated[float, typer.Option("--rate", help="Peak learning rate.")] = 2e-3,
    every: Annotated[int, typer.Option("--every", help="Steps between reports and checkpoints.")] = 50,
) -> None:
    """Teach a model to read explicit memories, in two stages; run again after an interruption, and it goes on.

    Open the result with MemoryLLM("FOLDER", recipe="memory3").
    """
    # Imported here: torch and transformers take seconds.
    from transformers.utils.logging import disable_progress_bar

    from agentmem.llm import BUNDLED, bundled_model
    from agentmem.training.memory3 import Settings, train

    disable_progress_bar()
    stages = (0, 0) if from_scratch else (warm_up, strings)
    settings = Settings(steps, *stages, sets=sets, rows=rows, keep=keep, rate=rate)
    base = bundled_model() if model == BUNDLED else model
    with progress() as bars:
        task = bars.add_task("training", total=steps)
        train(
            out,
            settings,
            base=base,
            hidden=hidden,
            layers=layers,
            every=every,
            advance=lambda _, done, total: bars.update(task, completed=done, total=total),
        )
    note(f"written: {out}")
