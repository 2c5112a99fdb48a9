"""The cases: the work to measure, the method, and the servers."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import clients
from benchmarks.figures import Measurement
from benchmarks.processes import OURS, PYTHON_SERVERS, SERVERS, Bench, Server


@dataclass(frozen=True)
class Settings:
    """The durations and sizes of a run."""

    rounds: int
    seconds: float  # duration of each measurement that has a set time
    warm_up: float  # duration of the warm-up
    stream: int  # bytes of a stream
    idle: int  # idle connections for memory; 90% of these beside active ones
    simulated: int  # connections of a simulation, for memory


FULL = Settings(rounds=5, seconds=0.8, warm_up=0.2, stream=1 << 30, idle=10_000, simulated=100_000)
QUICK = Settings(rounds=1, seconds=0.3, warm_up=0.1, stream=1 << 26, idle=1_000, simulated=1_000)


@dataclass(frozen=True)
class Row:
    """A row of the tables: its name in the results, its subject, and the unit of its figures."""

    name: str
    title: str
    unit: str


@dataclass(frozen=True)
class Case:
    """A case: a step for each server, with a measurement for each row."""

    rows: tuple[Row, ...]
    servers: tuple[Server, ...]
    measure: Callable[[Bench, Server, Settings], Sequence[Measurement]]
    on_sockets: bool = True
    client: str = ""  # a program that replaces the load generator of this project
    library: str = ""  # modules that must be installed for the case

    @property
    def name(self) -> str:
        return self.rows[0].name

    @property
    def missing(self) -> str | None:
        """Return why the case cannot be measured, if a program or a module is missing."""
        if self.client and shutil.which(self.client) is None:
            return f"{self.client} is not installed"
        if self.library and importlib.util.find_spec(self.library) is None:
            return f"{self.library} is not installed"
        return None


def rate(report: dict[str, float], what: str = "operations", scale: float = 1) -> Measurement:
    """The amount of *what* per second."""
    return Measurement(
        report[what] / report["seconds"] / scale,
        report.get("median_us"),
        report.get("p99_us"),
        report.get("load_cpu"),
        report.get("server_cpu"),
        report.get("disturbed"),
    )


def rate_and_cpu(report: dict[str, float], what: str = "operations", scale: float = 1) -> list[Measurement]:
    """The measurements for the rows of ``with_cpu``."""
    measurement = rate(report, what, scale)
    return [measurement, Measurement(report["server_cpu"] * 1e6 / measurement.value)]


def with_cpu(name: str, title: str, units: str) -> tuple[Row, Row]:
    """The rows for the rate of a work on sockets, and for the server's processor time per unit of work."""
    return (
        Row(name, title, f"{units}/s"),
        Row(f"{name}-cpu", f"{title}: processor time (less is better)", f"µs/{units.removesuffix('s')}"),
    )


def timed(settings: Settings) -> dict[str, float]:
    return {"seconds": settings.seconds, "warm_up": settings.warm_up}


def echo(size: int, connections: int) -> Case:
    def measure(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
        with bench.serving(server, "echo") as running:
            report = bench.load("echo", running, connections=connections, request=size, **timed(settings))
        return rate_and_cpu(report)

    shown = f"{size} B" if size < 1024 else f"{size // 1024} KiB"
    name = f"echo-{shown.replace(' KiB', 'K').replace(' B', '')}x{connections}"
    return Case(with_cpu(name, f"echo {shown} × {connections:,}", "requests"), SERVERS, measure)


def resp(connections: int, pipelined: int = 1) -> Case:
    def measure(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
        how = {"connections": connections, "pipelined": pipelined}
        with bench.serving(server, "resp") as running:
            return rate_and_cpu(clients.redis_benchmark(bench, running, settings.seconds, **how))

    name, title = f"resp-x{connections}", f"RESP × {connections}"
    if pipelined > 1:
        name, title = f"{name}-pipelined", f"{title}, {pipelined} pipelined"
    rows = with_cpu(name, f"{title}, redis-benchmark", "requests")
    return Case(rows, PYTHON_SERVERS, measure, client="redis-benchmark", library="hiredis")


def http(connections: int) -> Case:
    def measure(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
        with bench.serving(server, "http") as running:
            return rate_and_cpu(clients.wrk(bench, running, settings.seconds, connections=connections))

    rows = with_cpu(f"http-x{connections}", f"HTTP × {connections}, wrk", "requests")
    return Case(rows, PYTHON_SERVERS, measure, client="wrk", library="h11")


def connect(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
    with bench.serving(server, "echo") as running:
        return rate_and_cpu(bench.load("connect", running, connections=50, **timed(settings)))


def connect_case() -> Case:
    return Case(with_cpu("connect", "connect, exchange 64 B, close", "connections"), SERVERS, connect)


def stream_out(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
    with bench.serving(server, "send") as running:
        return rate_and_cpu(bench.load("stream-out", running, stream=settings.stream), "bytes", 1e6)


def stream_in(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
    with bench.serving(server, "receive") as running:
        return rate_and_cpu(bench.load("stream-in", running, stream=settings.stream), "bytes", 1e6)


def burst(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
    with bench.serving(server, "burst") as running:
        return rate_and_cpu(bench.load("burst", running, connections=10, answer=64_000, **timed(settings)))


def idle(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
    """The memory of idle connections, and the rate of echoes without idle connections, and beside them."""
    few = settings.idle // 10

    def active() -> list[Measurement]:
        return rate_and_cpu(bench.load("echo", running, connections=100, **timed(settings)))

    with bench.serving(server, "echo") as running:
        alone = active()
        before = running.private_memory()
        with bench.held(running, settings.idle - few):
            with bench.held(running, few):
                each = (running.private_memory() - before) / settings.idle
            beside = active()
    return [Measurement(each / 1024), *alone, *beside]


def in_memory(work: str) -> Callable[[Bench, Server, Settings], Sequence[Measurement]]:
    def measure(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
        return [rate(bench.in_memory(server.argument or work, settings.seconds))]

    return measure


def memory(bench: Bench, server: Server, settings: Settings) -> Sequence[Measurement]:
    """The growth of a process that simulates many connections."""
    return [Measurement(bench.in_memory("simulated-memory", settings.simulated)["MiB"])]


#: Not a server, but the minimum of work that splits data into lines.
SPLIT = Server("bytes.split", "", "benchmarks", "split")

CASES = [
    echo(64, 100),
    echo(4 * 1024, 100),
    echo(64 * 1024, 100),
    echo(64, 1),
    echo(64, 8),
    echo(64, 1000),
    connect_case(),
    Case(with_cpu("stream-out", "stream out", "MB"), SERVERS, stream_out),
    Case(with_cpu("stream-in", "stream in", "MB"), SERVERS, stream_in),
    Case(with_cpu("burst", "burst of 1,000 writes of 64 B", "bursts"), SERVERS, burst),
    Case(
        (
            Row("idle", "memory of an idle connection (less is better)", "KiB"),
            *with_cpu("echo-alone", "echo 64 B × 100, none idle", "requests"),
            *with_cpu("echo-beside-idle", "echo 64 B × 100, many idle", "requests"),
        ),
        PYTHON_SERVERS,
        idle,
    ),
    resp(50),
    resp(50, pipelined=16),
    resp(1),
    http(50),
    http(1),
    Case((Row("lines", "lines of 32 B through `Lines`", "lines/s"),), (OURS, SPLIT), in_memory("lines"), False),
    Case(
        (Row("round-trips", "round trips of 64 B in memory", "round trips/s"),),
        (OURS,),
        in_memory("round-trips"),
        False,
    ),
    Case(
        (Row("simulated-seconds", "simulation: 10 clients, a line a second each", "simulated s/s"),),
        (OURS,),
        in_memory("simulated-seconds"),
        False,
    ),
    Case(
        (Row("simulated-resets", "simulation: conversations that end with a reset", "conversations/s"),),
        (OURS,),
        in_memory("simulated-resets"),
        False,
    ),
    Case(
        (Row("simulated-races", "simulation: seeds of a race", "seeds/s"),),
        (OURS,),
        in_memory("simulated-races"),
        False,
    ),
    Case(
        (Row("simulated-memory", "simulation: growth after 100,000 connections (less is better)", "MiB"),),
        (OURS,),
        memory,
        False,
    ),
]
