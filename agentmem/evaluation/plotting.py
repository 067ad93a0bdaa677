"""Plots of results, as PNG and SVG. Needs matplotlib (extra ``eval``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmem.errors import InvalidInput
from agentmem.evaluation.result import Plot, Row, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart with any kind of colour vision; the markers differ too."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def check() -> None:
    """Raise InvalidInput, with what to install, when nothing can be drawn here."""
    with styled():
        pass


def draw(plot: Plot, rows: Sequence[Row], stem: Path) -> list[Path]:
    """Draw the rows to ``stem``.png and ``stem``.svg; rows without a value along either axis are left out.

    Raises:
        InvalidInput: the extra ``eval`` is not installed.
    """
    drawn = [row for row in rows if row.get(plot.x) is not None and row.get(plot.y) is not None]
    with styled() as figure:
        axes = figure.add_subplot()
        (bars if any(isinstance(row[plot.x], str) for row in drawn) else lines)(axes, plot, drawn)
        axes.set_title(plot.title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
        for path in paths:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


@contextmanager
def styled() -> Iterator[Figure]:
    """An empty figure in our style, to be drawn and saved inside. The same figures give the same file: no date, no
    random names.

    Raises:
        InvalidInput: the extra ``eval`` is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInput("plots need matplotlib: pip install 'agentmem-kv[eval]'") from error
    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "agentmem"}):
        yield Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")


def _series(plot: Plot, rows: Sequence[Row]) -> dict[str, list[Row]]:
    named: dict[str, list[Row]] = {}
    for row in rows:
        named.setdefault(str(row.get(plot.series)) if plot.series else "", []).append(row)
    return named


def _spread(plot: Plot, rows: Sequence[Row]) -> list[list[float]] | None:
    """Distances of the interval's ends from the value, as matplotlib wants them; None without an interval."""
    low, high = f"{plot.y}_low", f"{plot.y}_high"
    if all(row.get(low) is None or row.get(high) is None for row in rows):
        return None
    below = [0.0 if row.get(low) is None else _number(row, plot.y) - _number(row, low) for row in rows]
    above = [0.0 if row.get(high) is None else _number(row, high) - _number(row, plot.y) for row in rows]
    return [[max(0.0, length) for length in ends] for ends in (below, above)]


def _number(row: Row, column: str) -> float:
    value = row[column]
    if not isinstance(value, int | float):
        raise InvalidInput(f"column {column!r} is drawn, so it must hold numbers, not {value!r}")
    return float(value)


def lines(axes: Axes, plot: Plot, rows: Sequence[Row]) -> None:
    """One line per series, over numbers."""
    for number, (name, members) in enumerate(_series(plot, rows).items()):
        axes.errorbar(
            [_number(row, plot.x) for row in members],
            [_number(row, plot.y) for row in members],
            yerr=_spread(plot, members),
            label=name,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            capsize=3,
            markersize=5,
        )
    if plot.log2:
        axes.set_xscale("log", base=2)
        ticks = sorted({_number(row, plot.x) for row in rows})
        axes.set_xticks(ticks, [tokens(tick) for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(heading(plot.x))
    axes.set_ylabel(heading(plot.y))
    axes.grid(axis="y", alpha=0.3)
    _share(axes.yaxis, axes.set_ylim, plot)
    _legend(axes, plot)


def bars(axes: Axes, plot: Plot, rows: Sequence[Row]) -> None:
    """One group per word along x, one bar per series in it, drawn sideways so that the words stay readable."""
    groups = list(dict.fromkeys(str(row[plot.x]) for row in rows))
    named = _series(plot, rows)
    height = 0.8 / len(named)
    for number, (name, members) in enumerate(named.items()):
        at = [groups.index(str(row[plot.x])) + (number - (len(named) - 1) / 2) * height for row in members]
        axes.barh(
            at,
            [_number(row, plot.y) for row in members],
            height,
            xerr=_spread(plot, members),
            label=name,
            color=COLOURS[number % len(COLOURS)],
            error_kw={"capsize": 3},
        )
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlabel(heading(plot.y))
    axes.grid(axis="x", alpha=0.3)
    _share(axes.xaxis, axes.set_xlim, plot)
    _legend(axes, plot)


def _legend(axes: Axes, plot: Plot) -> None:
    """Beside the axes, where it hides nothing."""
    if plot.series:
        axes.legend(title=heading(plot.series), frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _share(axis: Any, limits: Any, plot: Plot) -> None:
    if plot.percent:
        from matplotlib.ticker import PercentFormatter

        axis.set_major_formatter(PercentFormatter(1.0))
        limits(-0.03, 1.03)


def tokens(number: float) -> str:
    """A length in tokens as people write it: 512, 4k, 1,024k."""
    return f"{number / 1024:,.0f}k" if number >= 1024 and number % 1024 == 0 else f"{number:,.0f}"
