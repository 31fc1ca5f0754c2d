"""What ``bench`` prints and draws."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtests.generator import Outcome, generator_name

Key = tuple[str, int, str]
"""Load, connections, server."""
GROUPS = ("api", "actors", "postgres", "ray", "generator")
COLUMNS = ("", "a second", "least–most", "times A", "p50 ms", "p99 ms", *(f"{group} s" for group in GROUPS))
NOTE = "Answers a second: median, least and most of the rounds; seconds of CPU for 1,000 answers, by process."


@dataclass(slots=True)
class Cell:
    """The rounds of one server under one load."""

    outcomes: list[Outcome] = field(default_factory=list)
    cpu_s: list[dict[str, float]] = field(default_factory=list)
    """CPU seconds for 1,000 answers, by what used them."""

    def add(self, outcome: Outcome, used: Mapping[str, float]) -> None:
        """One more round."""
        self.outcomes.append(outcome)
        self.cpu_s.append({name: 1000 * seconds / max(1, outcome.answered) for name, seconds in used.items()})

    @property
    def rate(self) -> float:
        """Answers a second, the median."""
        return statistics.median(outcome.rate for outcome in self.outcomes)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most answers a second."""
        rates = [outcome.rate for outcome in self.outcomes]
        return min(rates), max(rates)

    @property
    def p50_ms(self) -> float:
        """The median round's."""
        return statistics.median(outcome.p50_ms for outcome in self.outcomes)

    @property
    def p99_ms(self) -> float:
        """The median round's."""
        return statistics.median(outcome.p99_ms for outcome in self.outcomes)

    def cpu(self, group: str) -> float:
        """CPU seconds for 1,000 answers, the median."""
        return statistics.median(each[group] for each in self.cpu_s)


def print_report(cells: Mapping[Key, Cell], yardstick: str) -> None:
    """The figures of all cells, a table for each load and number of connections."""
    console = Console(width=132)
    for title, rows in _tables(cells, yardstick):
        table = Table(title=title)
        for name in COLUMNS:
            table.add_column(name, justify="right" if name else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(NOTE)


def write_report(directory: Path, cells: Mapping[Key, Cell], yardstick: str, how: str) -> None:
    """The same as Markdown, and drawn."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [f"# Bookings a second\n\n{os.cpu_count()} cores, {how}, load by {generator_name()}. {NOTE}\n"]
    for title, rows in _tables(cells, yardstick):
        lines.append(f"\n## {title}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        lines += [f"| {' | '.join(row)} |" for row in rows]
    (directory / "bench.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw(directory / "bench.svg", cells)


def _tables(cells: Mapping[Key, Cell], yardstick: str) -> Iterator[tuple[str, list[Sequence[str]]]]:
    for load, connections in dict.fromkeys(key[:2] for key in cells):
        rows = {server: cell for (*where, server), cell in cells.items() if where == [load, connections]}
        against = rows.get(yardstick)
        yield f"{load}, {connections} connections", [_row(server, cell, against) for server, cell in rows.items()]


def _row(server: str, cell: Cell, against: Cell | None) -> Sequence[str]:
    least, most = cell.spread
    return (
        server,
        f"{cell.rate:,.0f}",
        f"{least:,.0f}–{most:,.0f}",
        f"{cell.rate / against.rate:.2f}" if against is not None else "",
        f"{cell.p50_ms:.1f}",
        f"{cell.p99_ms:.1f}",
        *(f"{cell.cpu(group):.3f}" for group in GROUPS),
    )


def _draw(path: Path, cells: Mapping[Key, Cell]) -> None:
    from matplotlib.figure import Figure  # Heavy, and only drawn when asked for.

    loads = list(dict.fromkeys(load for load, _, _ in cells))
    servers = list(dict.fromkeys(server for _, _, server in cells))
    figure = Figure(figsize=(5 * len(loads), 8), layout="constrained")
    for column, load in enumerate(loads):
        for row, (what, label) in enumerate((("rate", "answers a second"), ("p99_ms", "p99, ms"))):
            axes = figure.add_subplot(2, len(loads), 1 + column + row * len(loads))
            for server in servers:
                points = [(n, cell) for (of, n, name), cell in cells.items() if (of, name) == (load, server)]
                heights = [getattr(cell, what) for _, cell in points]
                (line,) = axes.plot([n for n, _ in points], heights, marker="o", label=server)
                if what == "rate":
                    least, most = zip(*(cell.spread for _, cell in points), strict=True)
                    axes.fill_between([n for n, _ in points], least, most, color=line.get_color(), alpha=0.15)
            axes.set(xscale="log", xlabel="connections", ylabel=label, ylim=(0, None), title=load if row == 0 else "")
            axes.minorticks_off()
            axes.set_xticks(sorted({n for _, n, _ in cells}), labels=map(str, sorted({n for _, n, _ in cells})))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(servers))
    figure.savefig(path)
