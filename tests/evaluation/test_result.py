"""What a task hands back: the same rows for people, for programs, and drawn."""

import builtins
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from rich.console import Console

from agentmem.errors import InvalidInput
from agentmem.evaluation import plotting
from agentmem.evaluation.plotting import COLOURS, MARKERS, draw, tokens
from agentmem.evaluation.result import Plot, Result, Row

LENGTHS = (4096, 65536, 1048576)
ROWS: list[Row] = [
    {"recipe": name, "tokens": length, "accuracy": rate, "accuracy_low": rate - 0.05, "accuracy_high": rate}
    for name, rate in (("infllm", 1.0), ("streaming", 0.25))
    for length in LENGTHS
]
PLOT = Plot("tokens", "accuracy", series="recipe", title="Pass keys", log2=True, percent=True)
RESULT = Result("passkey", {"model": "bundled", "samples": 50, "lengths": [4096, 65536]}, ROWS, PLOT)


def shown(result: Result) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed with the console
    with console.file:
        console.print(result.table())
        return console.export_text()


def test_the_table_shows_every_row_with_its_interval() -> None:
    text = shown(RESULT)
    assert "accuracy low" not in text
    assert "1,048,576" in text
    assert "0.25 (0.2–0.25)" in text
    assert len(text.strip().splitlines()) == 2 + len(ROWS)


def test_markdown_has_the_settings_and_the_same_cells() -> None:
    first, blank, head, rule, *body = RESULT.markdown().splitlines()
    assert first == "**passkey**: model bundled, samples 50, lengths 4096, 65536"
    assert (blank, head, rule) == ("", "| recipe | tokens | accuracy |", "| --- | --- | --- |")
    assert body[0] == "| infllm | 4,096 | 1 (0.95–1) |"
    assert len(body) == len(ROWS)


def test_what_was_not_measured_stays_empty_and_bars_are_escaped() -> None:
    result = Result("recall", {}, [{"contender": "a|b", "rate": None}, {"contender": "c", "bytes": 12345.6}])
    assert result.markdown().splitlines()[-2:] == ["| a\\|b |  |  |", "| c |  | 12,346 |"]
    assert result.columns() == ["contender", "rate", "bytes"]


def test_an_interval_without_its_figure_is_a_column_of_its_own() -> None:
    assert Result("t", {}, [{"water_low": 1.0}]).columns() == ["water_low"]


def test_it_writes_json_markdown_png_and_svg(tmp_path: Path) -> None:
    written = RESULT.write(tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["passkey.json", "passkey.md", "passkey.png", "passkey.svg"]
    told = json.loads(written[0].read_text(encoding="utf-8"))
    assert told["task"] == "passkey"
    assert told["rows"] == ROWS
    assert told["settings"]["samples"] == 50
    assert told["machine"]["torch"] == version("torch")
    assert told["machine"]["date"].startswith("20")
    assert written[1].read_text(encoding="utf-8") == RESULT.markdown()
    assert imread(written[2]).shape[:2] == (630, 1080)
    svg = written[3].read_text(encoding="utf-8")
    assert "<svg" in svg
    assert "</svg>" in svg


def test_without_a_plot_there_is_no_figure(tmp_path: Path) -> None:
    assert [path.suffix for path in Result("t", {}, ROWS).write(tmp_path)] == [".json", ".md"]


def test_a_number_that_json_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Result("t", {}, [{"perplexity": float("inf")}]).write(tmp_path)


def test_a_plot_of_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInput, match="accuray"):
        Result("passkey", {}, ROWS, Plot("tokens", "accuray"))


@pytest.fixture
def axes() -> Iterator[Axes]:
    with plotting.styled() as figure:
        yield figure.add_subplot()


def test_lines_have_the_series_the_intervals_and_lengths_in_powers_of_two(axes: Axes) -> None:
    plotting.lines(axes, PLOT, ROWS)
    lines = [container[0] for container in axes.containers]
    assert [list(line.get_xdata()) for line in lines] == [list(LENGTHS)] * 2
    assert [line.get_color() for line in lines] == list(COLOURS[:2])
    assert [line.get_marker() for line in lines] == list(MARKERS[:2])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["infllm", "streaming"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4k", "64k", "1,024k"]
    assert axes.get_xscale() == "log"
    ends = axes.containers[0][2][0].get_segments()
    assert [end[:, 1].tolist() for end in ends] == [pytest.approx([0.95, 1.0])] * 3


def test_words_make_bars_in_groups(axes: Axes) -> None:
    rows: list[Row] = [
        {"contender": contender, "kind": kind, "rate": 10.0 * at}
        for at, contender in enumerate(("memory", "RAG"), 1)
        for kind in ("prefill", "decode")
    ]
    plotting.bars(axes, Plot("contender", "rate", series="kind"), rows)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["memory", "RAG"]
    assert [[bar.get_width() for bar in group] for group in axes.containers] == [[10.0, 20.0]] * 2


def test_rows_without_a_value_are_not_drawn(tmp_path: Path) -> None:
    rows: list[Row] = [*ROWS, {"recipe": "full", "tokens": LENGTHS[0], "accuracy": None}]
    assert len(draw(PLOT, rows, tmp_path / "passkey")) == 2


def test_words_along_y_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'recipe'"):
        draw(Plot("tokens", "recipe"), ROWS, tmp_path / "x")


def test_the_same_rows_give_the_same_picture(tmp_path: Path) -> None:
    one, two = (draw(PLOT, ROWS, tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


@pytest.mark.parametrize(("number", "text"), [(512, "512"), (4096, "4k"), (1048576, "1,024k"), (5000, "5,000")])
def test_lengths_are_written_as_people_say_them(number: int, text: str) -> None:
    assert tokens(number) == text


def test_without_matplotlib_the_rest_is_written_and_the_extra_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidInput, match=r"agentmem-kv\[eval\]"):
        RESULT.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"passkey.json", "passkey.md"}
    with pytest.raises(InvalidInput, match=r"agentmem-kv\[eval\]"):
        plotting.check()
