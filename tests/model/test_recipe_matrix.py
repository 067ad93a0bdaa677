"""Every recipe on every family: written, stored, read by a new process; and the same logits worked out by hand."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import recipe_reference
import torch
from matrix_world import CASES, CUT, QUESTION, STREAM, STREAM_CASES, STREAMS, TEXTS, write, write_streams
from recipe_reference import ByHand
from safetensors.torch import load_file
from stream_reference import StreamByHand
from tiny_models import FAMILIES, build, local, tokenizer

from agentmem.model.stream import Stream
from agentmem.recipes import RECIPES, STREAM_RECIPES, FullAttention, MemLong, Memory3, Parallel, Recipe

HEADER = "[user 2026-05-04] "


@functools.cache
def by_hand(family: str) -> ByHand:
    return ByHand(build(family))


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def expected(recipe: Recipe, family: str, texts: list[str]) -> torch.Tensor:
    """The logits of the question with these memories, in the order in which they were read, by hand."""
    context = ids(QUESTION)
    match recipe:
        case Parallel():
            chunks = [ids(f"{HEADER}{text}\n") for text in texts]
            return recipe_reference.parallel(
                by_hand(family), chunks, context, temperature=recipe.temperature, scale=recipe.scale
            )
        case MemLong():
            # By default the middle layer of four is kept, and read by itself and the one above.
            return recipe_reference.memlong(
                by_hand(family),
                [ids(text) for text in texts],
                context,
                memory_layer=2 if recipe.memory_layer is None else recipe.memory_layer,
                read_by=recipe.retrieval_layers or (2, 3),
                contiguous=recipe.positions == "contiguous",
            )
        case Memory3():
            return recipe_reference.memory3(
                by_hand(family),
                [ids(f" {text}") for text in texts],
                context,
                prefix=[1, *ids("Reference:")],
                layers=recipe.layers or (0, 1),
                keep=recipe.keep,
                softmax=recipe.score == "softmax",
                interval=recipe.interval,
            )
        case _:
            raise NotImplementedError(f"work {recipe!r} out by hand in recipe_reference.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What another process read from the store that this one wrote."""
    path = tmp_path_factory.mktemp("matrix")
    for case in CASES:
        write(path, case)
    write_streams(path)
    command = [sys.executable, str(Path(__file__).with_name("matrix_world.py")), str(path)]
    outcome = subprocess.run(
        command, env={**os.environ, "PYTHONWARNINGS": "error"}, capture_output=True, text=True, check=False, timeout=280
    )
    assert outcome.returncode == 0, outcome.stderr
    return path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_a_new_process_reads_what_the_formulas_say(folder: Path, case: str, family: str) -> None:
    got = load_file(folder / f"{case}.safetensors")[family]
    texts = json.loads((folder / f"{case}.json").read_text(encoding="utf-8"))[family]
    assert texts == list(TEXTS), "memories are read in the order in which they were written"
    want = expected(CASES[case], family, texts)
    assert (got - want).abs().max() < 1e-4
    # The negative control: without the memories, logits are far away.
    assert (by_hand(family).plain(ids(QUESTION)) - want).abs().max() > 0.05


@pytest.mark.parametrize(("case", "family"), STREAM_CASES)
def test_a_new_process_goes_on_with_a_stream_as_the_formulas_say(folder: Path, case: str, family: str) -> None:
    got = load_file(folder / "streams.safetensors")[f"{case}.{family}"]
    plan = STREAMS[case].plan(local(family))
    firsts = [*range(0, CUT, plan.step), *range(CUT, len(STREAM), plan.step)]
    want = StreamByHand(by_hand(family), plan, firsts).logits(STREAM)[CUT:]
    assert (got - want).abs().max() < 1e-4
    # The negative control: the whole text in the context gives other logits.
    assert (by_hand(family).plain(STREAM)[CUT:] - want).abs().max() > 0.01


def test_full_attention_as_a_stream_is_the_plain_model() -> None:
    model = local("qwen3")
    stream = Stream(model, FullAttention(step=12).plan(model))
    got = torch.cat([stream.feed(STREAM[:CUT], all_logits=True), stream.feed(STREAM[CUT:], all_logits=True)])
    assert (got - by_hand("qwen3").plain(STREAM)).abs().max() < 1e-4


def test_every_recipe_is_here() -> None:
    assert {recipe.name for recipe in CASES.values()} == set(RECIPES)
    assert {recipe.name for recipe in STREAMS.values()} | {"full_attention"} == set(STREAM_RECIPES)
