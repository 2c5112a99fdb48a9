"""The files of a run: all figures as JSON, tables in Markdown, and the chart."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import chart
from benchmarks.cases import Case, Row, Settings
from benchmarks.figures import Figures, Spread, shown
from benchmarks.processes import OURS, PYTHON_SERVERS, Server
from benchmarks.targets import TARGETS, best_of

#: If the load's core was this busy, and the server's core was not, the load held up the server.
BUSY = 0.95

#: If another process used a core for this share of the time, a measurement counts as disturbed.
DISTURBED = 0.05


@dataclass(frozen=True)
class Run:
    """The content of a report."""

    machine: dict[str, str]
    settings: Settings
    cases: list[Case]
    figures: Figures
    notes: list[str]

    def rows(self) -> list[tuple[Row, Case]]:
        """The rows with at least one measurement or error."""
        return [(row, case) for case in self.cases for row in case.rows if self.servers(row, case)]

    def servers(self, row: Row, case: Case) -> list[Server]:
        """The servers on which the row was tried."""
        return [
            server
            for server in case.servers
            if self.figures.measurements(row.name, server) or self.figures.failures_of(row.name, server)
        ]


def write(run: Run, directory: Path) -> None:
    """Write the files of *run* to *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(json.dumps(as_json(run), indent=1, ensure_ascii=False) + "\n")
    (directory / "results.md").write_text(markdown(run))
    (directory / "chart.svg").write_text(chart.svg(run.figures, run.machine))


def ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.least:.2f}-{spread.most:.2f})"


def as_json(run: Run) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for row, case in run.rows():
        servers = {
            server.name: {
                "median": _dict(run.figures.spread(row.name, server)),
                "ours to it": _dict(run.figures.against(row.name, server)),
                "rounds": [asdict(measurement) for measurement in run.figures.measurements(row.name, server)],
            }
            for server in run.servers(row, case)
        }
        rows[row.name] = {"title": row.title, "unit": row.unit, "servers": servers}
    return {
        "machine": run.machine,
        "settings": asdict(run.settings),
        "notes": all_notes(run),
        "rows": rows,
        "targets": [
            {
                "row": target.row,
                "claim": target.claim,
                "measured": asdict(measured),
                "reached": target.reached(measured),
            }
            for target in TARGETS
            if (measured := target.measure(run.figures, target.row))
        ],
        "failures": [asdict(failure) for failure in run.figures.failures],
    }


def _dict(spread: Spread | None) -> dict[str, float] | None:
    return asdict(spread) if spread else None


def all_notes(run: Run) -> list[str]:
    shares = [
        measurement.disturbed
        for row, case in run.rows()
        for server in case.servers
        for measurement in run.figures.measurements(row.name, server)
        if measurement.disturbed is not None
    ]
    disturbed = sum(share > DISTURBED for share in shares)
    if not disturbed:
        return run.notes
    return [
        *run.notes,
        f"In {disturbed} of {len(shares)} measurements another process had the core of the server or of the load for "
        f"more than {DISTURBED:.0%} of the time: the machine was not left alone.",
    ]


def markdown(run: Run) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in run.machine.items())
    settings = run.settings
    parts = [
        "# How fast it is",
        f"{machine}.",
        f"Medians of interleaved rounds: {settings.rounds}, of {settings.seconds} s each after {settings.warm_up} s of "
        "warm-up; server on one core, load on another. A figure under *×*, or behind it, is this server's figure "
        "divided by the other server's: the median of the ratios within each round, and in parentheses the least and "
        "the most of them. In the first table, a ratio is bold if the other server is ahead. *≥* marks figures for "
        "which the load was busier than the server, so the server can do more. C epoll is not a competitor, but the "
        "floor: a loop in C that does the same work with nothing around it.",
        "*Processor time* is how long the server runs, in its own code and in the kernel, for each request, "
        "connection, MB or burst. Compare it, rather than the rate, if the load was the limit or other programs ran.",
        f"Streams are of {settings.stream >> 20:,} MiB. Memory is measured with {settings.idle:,} idle connections, "
        f"without the kernel's memory for their sockets; *many idle* are {settings.idle - settings.idle // 10:,}.",
        *all_notes(run),
        *_summary(run),
        *_targets(run),
        *_overview(run),
        *_details(run),
        *_failures(run),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(run: Run) -> Iterable[str]:
    """The table for the README: this project's figures, and their ratios to the other servers' figures."""
    others = [server for server in PYTHON_SERVERS if server is not OURS]
    lines = [["work", "unit", OURS.name, *(f"× {server.name}" for server in others)]]
    for row, case in run.rows():
        ours = run.figures.spread(row.name, OURS)
        if ours and case.on_sockets:
            ratios = [run.figures.against(row.name, server) for server in others]
            times = [_shown_ratio(row, against.median) if against else "" for against in ratios]
            lines.append([row.title, row.unit, shown(ours.median), *times])
    if len(lines) > 1:
        yield _table(lines)


def _shown_ratio(row: Row, ratio: float) -> str:
    """Return *ratio*, in bold if the other server is ahead."""
    is_ahead = ratio > 1 if "less is better" in row.title else ratio < 1
    return f"**{ratio:.2f}**" if is_ahead else f"{ratio:.2f}"


def _overview(run: Run) -> Iterable[str]:
    yield "## All servers"
    servers = list(dict.fromkeys(server for row, case in run.rows() for server in run.servers(row, case)))
    lines = [["work", "unit", *(server.name for server in servers)]]
    for row, case in run.rows():
        cells = [_cell(run.figures, row, server) if server in run.servers(row, case) else "" for server in servers]
        lines.append([row.title, row.unit, *cells])
    yield _table(lines)


def _cell(figures: Figures, row: Row, server: Server) -> str:
    spread = figures.spread(row.name, server)
    failures = len(figures.failures_of(row.name, server))
    parts = []
    if spread:
        parts.append(("≥ " if load_was_the_limit(figures, row.name, server) else "") + shown(spread.median))
        ours = figures.against(row.name, server)
        if ours and server is not OURS:
            parts.append(f"× {ratio(ours)}")
    if failures:
        parts.append(f"**failed** {failures} ×")
    return "<br>".join(parts)


def load_was_the_limit(figures: Figures, row: str, server: Server) -> bool:
    load = figures.spread(row, server, "load_cpu")
    own = figures.spread(row, server, "server_cpu")
    return bool(load and own and load.median >= BUSY > own.median)


def _targets(run: Run) -> Iterable[str]:
    titles = {row.name: row.title for row, _ in run.rows()}
    lines = [["work", "target", "measured", "reached"]]
    for target in TARGETS:
        if target.row not in titles:
            continue
        claim = target.claim
        if "best" in claim and (best := best_of(run.figures, target.row)):
            claim += f", {best.name}"
        measured = target.measure(run.figures, target.row)
        if measured is None:
            lines.append([titles[target.row], claim, "not measured", "?"])
        else:
            reading = ratio(measured) if target.amount < 1000 else shown(measured.median)
            lines.append([titles[target.row], claim, reading, "yes" if target.reached(measured) else "**no**"])
    if len(lines) > 1:
        yield "## Targets"
        yield _table(lines)


def _details(run: Run) -> Iterable[str]:
    yield "## Details"
    yield (
        "*p50* and *p99*: median and 99th percentile of the time from the first byte of a request to the last of "
        "its answer. *server* and *load*: how busy they kept their cores. All are medians of the rounds."
    )
    lines = [["work", "server", "median", "least", "most", "p50, µs", "p99, µs", "server", "load"]]
    for row, case in run.rows():
        for server in run.servers(row, case):
            spread = run.figures.spread(row.name, server)
            if spread is None:
                continue
            latencies = [run.figures.spread(row.name, server, what) for what in ("median_us", "p99_us")]
            shares = [run.figures.spread(row.name, server, what) for what in ("server_cpu", "load_cpu")]
            lines.append(
                [
                    row.title,
                    server.name,
                    *(shown(value) for value in (spread.median, spread.least, spread.most)),
                    *(shown(latency.median) if latency else "" for latency in latencies),
                    *(f"{share.median:.0%}" if share else "" for share in shares),
                ]
            )
    yield _table(lines)


def _failures(run: Run) -> Iterable[str]:
    if run.figures.failures:
        yield "## Failures"
    rows: dict[tuple[str, int, str], list[str]] = {}
    for failure in run.figures.failures:
        rows.setdefault((failure.server, failure.round, failure.error), []).append(failure.row)
    for (server, round_number, error), failed in rows.items():
        yield f"{', '.join(failed)}, {server}, round {round_number}:\n\n```\n{error}\n```"


def _table(lines: list[list[str]]) -> str:
    head, *body = lines
    rule = ["---" if index < 2 else "---:" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body])
