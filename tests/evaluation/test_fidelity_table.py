"""``fidelity``: what storing and what reading changes, on the bundled model and a tiny one."""

from pathlib import Path

import pytest
import torch

from agentmem.errors import InvalidInput
from agentmem.evaluation.fidelity import EXACT, IN_PLACE, Difference, draw, fidelity
from agentmem.recipes import InfLLM, Parallel
from agentmem.training.values import is_heldout
from tests.model import tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    tiny_models.build("qwen3").save_pretrained(path)
    tiny_models.tokenizer().save_pretrained(path)
    return path


def test_exact_codecs_change_nothing_and_coarser_ones_change_more(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = fidelity(
        folder,
        recipes=["parallel", Parallel(temperature=0.5)],
        codecs=("fp32", "int8"),
        samples=2,
        memories=2,
        advance=lambda *step: told.append(step),
    )
    assert [(row["recipe"], row["codec"]) for row in result.rows] == [
        (recipe, codec) for recipe in (IN_PLACE, "parallel", "parallel") for codec in ("fp32", "int8")
    ]
    for exact, coarse in zip(result.rows[::2], result.rows[1::2], strict=True):
        assert exact["logit_difference"] < 1e-4
        assert exact["kl"] < 1e-9
        assert exact["top_1"] == 1.0
        assert coarse["kl"] > 1e-7
        assert coarse["logit_difference"] > exact["logit_difference"]
    parallel, cooler = result.rows[2], result.rows[4]
    assert parallel["kl_to_text"] > 0.01
    assert cooler["kl_to_text"] != pytest.approx(parallel["kl_to_text"], rel=1e-3)
    assert result.rows[3]["bytes_per_token"] < result.rows[2]["bytes_per_token"] / 2
    assert "kl_to_text" not in result.rows[0]
    assert told[-1] == ("questions", 12, 12)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_stream_that_was_stopped_and_reopened_answers_as_if_it_had_not(folder: Path) -> None:
    small = InfLLM(n_init=4, n_local=64, block_size=8, top_k=4, step=16)
    result = fidelity(folder, recipes=[small], codecs=("fp32",), samples=2, memories=1)
    _, row = result.rows
    assert (row["recipe"], row["codec"]) == ("infllm", EXACT)
    assert row["logit_difference"] < 1e-4
    assert row["top_1"] == 1.0
    assert row["kl_to_text"] > 1e-6, "a window of 64 tokens does not see all of the text"
    assert row["bytes_per_token"] > 0


def test_the_difference_is_that_of_the_formulas() -> None:
    want = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    got = torch.tensor([[0.0, 2.5, 2.0], [3.0, 0.0, 0.0]])
    difference = Difference()
    difference.add(got, want)
    assert difference.largest == 1.5
    p, q = want.softmax(-1), got.softmax(-1)
    assert difference.kl == pytest.approx((p * (p / q).log()).sum(-1).tolist())
    assert difference.same == [False, True]
    assert difference.row("_x")["top_1_x"] == 0.5


def test_questions_are_about_one_of_facts_never_trained_on() -> None:
    samples = draw(8, 3, seed=1)
    assert samples == draw(8, 3, seed=1)
    assert samples != draw(8, 3, seed=2)
    for sample in samples:
        assert len(sample.facts) == 3
        said = " ".join(sample.facts)
        words = [word for word in sample.answer.rstrip(".").split() if is_heldout(word.strip(",.")) and word in said]
        assert words, sample


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"samples": 0}, "samples"), ({"memories": 0}, "memories"), ({"codecs": ("bf61",)}, "bf61")],
)
def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(
    wrong: dict[str, object], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.model.local.LocalModel.load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InvalidInput, match=named):
        fidelity(**wrong)
