"""``agentmem eval``: measure what recipes remember and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentmem.cli import measuring
from agentmem.cli import options as opt

if TYPE_CHECKING:  # these need torch, and are imported when a task is run
    from agentmem.evaluation.progress import Advance
    from agentmem.evaluation.result import Result

app = typer.Typer(
    name="eval",
    help="Measure recipes on a model: a table here; JSON, Markdown and a plot in a folder.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the files go; made if need be.")]
Recipes = Annotated[
    list[str],
    typer.Option("--recipe", metavar="NAME[:FIELD=VALUE,...]", help="Recipe, with fields of it set; may be repeated."),
]
Text = Annotated[Path, typer.Option("--text", metavar="FILE", help="Long document (.txt, .md, .jsonl; also .xz).")]
Contenders = Annotated[
    list[str],
    typer.Option(
        "--contender",
        metavar="NAME=MODEL[@RECIPE]",
        help="A model (folder, id, or: bundled), without memory or with this recipe; may be repeated. "
        "The others are compared with the first.",
    ),
]
Lengths = Annotated[list[int], typer.Option("--length", help="Tokens of history; may be repeated.")]
Window = Annotated[int, typer.Option("--window", help="Tokens in context, the same for all.")]
EmbedderName = Annotated[
    str | None,
    typer.Option("--embedder", help="A sentence-transformers model.", show_default="each model's hidden states"),
]
Device = Annotated[str | None, typer.Option("--device", help="cuda, cpu, ...", show_default="a GPU if there is one")]
Recipe = Annotated[
    str, typer.Option("--recipe", metavar="NAME[:FIELD=VALUE,...]", help="Recipe, with fields of it set.")
]
Streams = Annotated[
    list[str],
    typer.Option(
        "--recipe",
        metavar="NAME[:FIELD=VALUE,...]",
        help="infllm, streaming_llm, lm_infinite or full_attention; may be repeated.",
    ),
]
Facts = Annotated[int, typer.Option("--facts", help="Size of the knowledge base.")]
Keep = Annotated[Path | None, typer.Option("--keep", metavar="FOLDER", help="Keep its store here, to be used again.")]
Seed = Annotated[int, typer.Option("--seed", help="Draws what is asked; the same seed asks the same.")]
DEFAULT_FOLDER = Path("eval")
RECIPES = ["parallel"]
STREAMS = ["infllm"]
PASSKEY_LENGTHS = [4096, 16_384, 65_536]
LENGTHS = [4096, 16384, 65536]


@app.command("fidelity")
def fidelity(
    recipes: Recipes = RECIPES,
    model: opt.Model = None,
    codecs: Annotated[
        list[str] | None, typer.Option("--codec", help="How KV is stored; may be repeated.", show_default="every codec")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Questions asked.")] = 16,
    memories: Annotated[int, typer.Option("--memories", help="Memories read for each question.")] = 4,
    seed: Seed = 0,
    folder: Folder = DEFAULT_FOLDER,
    json: opt.Json = False,
) -> None:
    """What storing KV changes in the model's answers, and what reading it as a recipe does changes."""
    from agentmem.evaluation.fidelity import fidelity as task
    from agentmem.recipes.spec import parse_recipe
    from agentmem.store.codec import CODECS

    chosen = [parse_recipe(recipe) for recipe in recipes]

    def measure(advance: Advance) -> Result:
        return task(
            model,
            recipes=chosen,
            codecs=codecs or CODECS,
            samples=samples,
            memories=memories,
            seed=seed,
            advance=advance,
        )

    measuring.run(measure, folder, json)


@app.command("perplexity")
def perplexity(
    text: Text,
    contenders: Contenders,
    lengths: Lengths = LENGTHS,
    window: Window = 512,
    embedder: EmbedderName = None,
    device: Device = None,
    folder: Folder = DEFAULT_FOLDER,
    json: opt.Json = False,
) -> None:
    """Perplexity of a long text, at the same positions for all, memory empty at the start of every piece."""
    from agentmem.evaluation.perplexity import perplexity as task

    chosen, document = measuring.contenders(contenders), measuring.document(text)

    def measure(advance: Advance) -> Result:
        return task(chosen, document, lengths, window=window, embedder=embedder, device=device, advance=advance)

    measuring.run(measure, folder, json)


@app.command("statements")
def statements(
    text: Text,
    contenders: Contenders,
    lengths: Lengths = LENGTHS,
    samples: Annotated[int, typer.Option("--samples", help="Questions per length.")] = 100,
    window: Window = 512,
    embedder: EmbedderName = None,
    device: Device = None,
    seed: Seed = 0,
    folder: Folder = DEFAULT_FOLDER,
    json: opt.Json = False,
) -> None:
    """Made-up statements far back in a long text, to be completed now: the share that each contender completes."""
    from agentmem.evaluation.statements import statements as task

    chosen, document = measuring.contenders(contenders), measuring.document(text)

    def measure(advance: Advance) -> Result:
        return task(
            chosen,
            document,
            lengths,
            samples=samples,
            window=window,
            embedder=embedder,
            device=device,
            seed=seed,
            advance=advance,
        )

    measuring.run(measure, folder, json)


@app.command("passkey")
def passkey(
    recipes: Streams = STREAMS,
    model: opt.Model = None,
    lengths: Annotated[
        list[int], typer.Option("--length", help="Tokens of a text; may be repeated.")
    ] = PASSKEY_LENGTHS,
    samples: Annotated[int, typer.Option("--samples", help="Texts per recipe and length.")] = 50,
    keys: Annotated[int, typer.Option("--keys", help="1, or 2: then the first or the second is asked for.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the first text; training used others.")] = 1_000_000,
    filler: Annotated[
        Path | None, typer.Option("--filler", help="Text to hide the keys in.", show_default="repeated sentences")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16, ...", show_default="the model's")
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    json: opt.Json = False,
) -> None:
    """Pass keys at random depths of long texts: accuracy, tokens per second and peak memory by length.

    Every sample is logged in the folder as it is done; a run that was interrupted goes on behind them.
    """
    from agentmem.evaluation.passkey import passkey as task

    chosen = measuring.streams(recipes)

    def measure(advance: Advance) -> Result:
        return task(
            model,
            recipes=chosen,
            lengths=lengths,
            samples=samples,
            keys=keys,
            seed=seed,
            filler=filler,
            dtype=dtype,
            log=folder / "passkey.jsonl",
            advance=advance,
        )

    measuring.run(measure, folder, json)


@app.command("recall")
def recall(
    recipe: Recipe = "memory3",
    model: opt.Model = None,
    facts: Facts = 10_000,
    questions: Annotated[int, typer.Option("--questions", help="How many facts are asked about.")] = 300,
    seed: Seed = 0,
    keep: Keep = None,
    folder: Folder = DEFAULT_FOLDER,
    json: opt.Json = False,
) -> None:
    """Made-up facts of a knowledge base: accuracy without memory, with text in the prompt and with memory; bytes."""
    from agentmem.evaluation.recall import recall as task
    from agentmem.recipes import memory_recipe
    from agentmem.recipes.spec import parse_recipe

    chosen = memory_recipe(parse_recipe(recipe))

    def measure(advance: Advance) -> Result:
        return task(model, recipe=chosen, facts=facts, questions=questions, seed=seed, folder=keep, advance=advance)

    measuring.run(measure, folder, json)


@app.command("throughput")
def throughput(
    recipe: Recipe = "memory3",
    model: opt.Model = None,
    embedder: Annotated[
        str | None, typer.Option("--embedder", help="A model whose hidden states search.", show_default="the model")
    ] = None,
    facts: Facts = 10_000,
    batch: Annotated[int, typer.Option("--batch", help="Requests at once.")] = 8,
    rounds: Annotated[int, typer.Option("--rounds", help="How often each contender runs.")] = 5,
    seed: Seed = 0,
    keep: Keep = None,
    folder: Folder = DEFAULT_FOLDER,
    json: opt.Json = False,
) -> None:
    """Generated tokens per second: the model alone, with references in its prompt, and with memory."""
    from agentmem.evaluation.throughput import throughput as task
    from agentmem.recipes import memory_recipe
    from agentmem.recipes.spec import parse_recipe

    chosen = memory_recipe(parse_recipe(recipe))

    def measure(advance: Advance) -> Result:
        return task(
            model,
            recipe=chosen,
            embedder=embedder,
            facts=facts,
            batch=batch,
            rounds=rounds,
            seed=seed,
            folder=keep,
            advance=advance,
        )

    measuring.run(measure, folder, json)
