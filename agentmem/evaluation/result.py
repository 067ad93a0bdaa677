"""What a task of ``agentmem eval`` found: a table for people, JSON for programs, and a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from agentmem.errors import InvalidInput
from agentmem.evaluation.machine import describe

Cell = str | int | float | None
Row = dict[str, Cell]


@dataclass(frozen=True)
class Plot:
    """Which columns to draw. Rows with the same ``series`` make one line, in the order of the rows.

    Numbers along ``x`` make lines, words make bars. A column ``<y>_low`` beside ``<y>_high`` makes error bars.
    ``log2`` is for lengths in tokens (4k, 16k, ...), ``percent`` for shares of 1.
    """

    x: str
    y: str
    series: str | None = None
    title: str = ""
    log2: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Result:
    """Rows of one measurement, and everything needed to read and to repeat it.

    ``settings`` is plain JSON. A row maps columns (``snake_case``) to values; None is "not measured" and stays empty.
    Columns ``<name>_low`` and ``<name>_high`` are the 95 % interval of ``<name>``, and are shown beside it.

    Raises:
        InvalidInput: the plot names a column that no row has.
    """

    task: str
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    plot: Plot | None = None

    def __post_init__(self) -> None:
        if self.plot is not None and self.rows:
            named = {self.plot.x, self.plot.y, *([self.plot.series] if self.plot.series else [])}
            if missing := named - set(self._all_columns()):
                raise InvalidInput(f"the plot of {self.task!r} names columns that no row has: {sorted(missing)}")

    def columns(self) -> list[str]:
        """Columns in the order in which they first appear, without the intervals that are shown beside theirs."""
        every = self._all_columns()
        return [name for name in every if _owner(name) not in every]

    def table(self) -> Table:
        """The rows for a terminal."""
        table = Table(title=self.task, box=None, pad_edge=False, header_style="bold", title_justify="left")
        for column in self.columns():
            words = any(isinstance(row.get(column), str) for row in self.rows)
            table.add_column(heading(column), justify="left" if words else "right", overflow="fold")
        for cells in self._cells():
            table.add_row(*map(Text, cells))
        return table

    def markdown(self) -> str:
        """The rows as a Markdown table, with its settings above."""
        names = [heading(column) for column in self.columns()]
        settings = ", ".join(f"{heading(name)} {_setting(value)}" for name, value in self.settings.items())
        lines = [
            f"**{self.task}**" + (f": {settings}" if settings else ""),
            "",
            *("| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names))),
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in self._cells()),
        ]
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Task, settings, rows, and where they were measured, as plain JSON."""
        return {
            "task": self.task,
            "settings": dict(self.settings),
            "machine": describe(torch.get_num_threads()),
            "rows": [dict(row) for row in self.rows],
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``<task>.json`` and ``<task>.md``, and with a plot ``<task>.png`` and ``<task>.svg``.

        The folder is made; files of these names are replaced. Returns what was written, figures first.

        Raises:
            InvalidInput: there is a plot, and the extra ``eval`` is not installed (the other files are written).
        """
        folder.mkdir(parents=True, exist_ok=True)
        report, page = folder / f"{self.task}.json", folder / f"{self.task}.md"
        report.write_text(json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        page.write_text(self.markdown(), encoding="utf-8")
        if self.plot is None or not self.rows:
            return [report, page]
        from agentmem.evaluation.plotting import draw  # late: an extra, and a second to import

        return [report, page, *draw(self.plot, self.rows, folder / self.task)]

    def _all_columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def _cells(self) -> Iterator[list[str]]:
        for row in self.rows:
            yield [_cell(row, column) for column in self.columns()]


def heading(name: str) -> str:
    """A column's or setting's name as people read it."""
    return name.replace("_", " ")


def _owner(column: str) -> str | None:
    """The column whose interval this one bounds, by its name."""
    for end in ("_low", "_high"):
        if column.endswith(end):
            return column.removesuffix(end)
    return None


def _cell(row: Row, column: str) -> str:
    text = _text(row.get(column))
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    return text if low is None or high is None else f"{text} ({_text(low, 3)}–{_text(high, 3)})"


def _text(value: Cell, digits: int = 4) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
