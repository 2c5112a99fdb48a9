"""Tests that the benchmarks run and detect errors.  None of them measures how fast anything is."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import against, chart, clients, growth, in_memory, report, simulated, work
from benchmarks.__main__ import parser
from benchmarks.cases import CASES, QUICK, Case, Row, rate_and_cpu, with_cpu
from benchmarks.figures import Figures, Measurement, Spread
from benchmarks.processes import (
    COMPILER,
    FLOOR,
    OURS,
    PYTHON_SERVERS,
    STREAM_SERVER,
    UVLOOP,
    Bench,
    Failed,
    Running,
    Server,
    two_cores,
)
from benchmarks.rounds import measured, planned
from benchmarks.targets import TARGETS, best_of

ROOT = Path(__file__).parent.parent

EVERYTHING = re.compile("")

#: The kinds of work for which real clients exist.
REAL = ["resp-x50", "resp-x50-pipelined", "resp-x1", "http-x50", "http-x1"]

needs_compiler = pytest.mark.skipif(not COMPILER, reason="cc is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the benchmarks are for Linux"),
    pytest.mark.timeout(300),  # the processes may share one core
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *arguments]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=250, **options)


# The whole program.


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The output and files of one run: all work of this package, some of the floor, and one row of each other
    server.
    """
    output = tmp_path_factory.mktemp("results")
    only = "ngi_gevent|bytes.split|^echo-64x100 |(stream|burst).* C epoll"
    done = run("--quick", "--seconds", "0.05", "--only", only, "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout, output


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with a copy of the files that the benchmarks need."""
    for name in ("benchmarks", "ngi_gevent", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "benchmarks" / "results" / "result.json").write_text('{"machine": {"revision": "HEAD"}}')
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "."]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True, timeout=60)
    return tmp_path


@pytest.fixture
def compare(repository: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that compares the working copy with a revision."""

    def compare(*revision: str) -> subprocess.CompletedProcess[str]:
        short = ["--quick", "--rounds", "1", "--seconds", "0.1"]
        whole = command("--against", *revision, *short)
        return subprocess.run(whole, cwd=repository, capture_output=True, text=True, timeout=250)

    return compare


@pytest.mark.parametrize(
    ("median", "least", "is_slower"), [(1.4, 14, True), (1.4, 12, False), (1.2, 14, False), (0.9, 9, False)]
)
def test_a_revision_is_slower_if_its_least_time_is_longer_too(median, least, is_slower):
    ours, other = Spread(20, least, 30), Spread(15, 10, 30)
    comparison = against.Comparison("echo", ours, other, ratio=Spread(median, 0.5, 2))
    assert comparison.is_slower is is_slower


@needs_compiler
@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_slower_revision_is_found(repository, compare):
    server = repository / "benchmarks" / "servers" / "ngi.py"
    server.write_text(
        server.read_text().replace("connection.write(data)", "sum(range(9_999)) and connection.write(data)")
    )
    done = compare()
    assert done.returncode == 1, done.stdout + done.stderr
    titles = re.findall("more than 1.3 times as much: (.*)", done.stdout)
    assert titles == ["echo 64 B × 1, µs/request", "echo 64 B × 100, µs/request"]


@needs_compiler
@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_an_unknown_revision_is_named(compare):
    done = compare("nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("git rev-parse: ")


def test_each_kind_of_work_has_its_figures(quick_run):
    result = json.loads((quick_run[1] / "result.json").read_text())
    assert result["failures"] == []
    assert set(result["rows"]) == {row.name for case in CASES if not case.missing for row in case.rows}
    for name, row in result["rows"].items():
        for server in row["servers"].values():
            (measurement,) = server["rounds"]
            assert server["median"]["median"] == measurement["value"] >= 0, name
            if name != "idle" and not name.endswith("-cpu"):  # these can be 0 in so short a run
                assert measurement["value"] > 0, name
            if name.endswith("-cpu"):
                assert server["median"]["median"] < 1e6  # microseconds
            elif name.startswith(("echo", "resp", "http")) or name in ("connect", "burst"):
                assert 0 < measurement["median_us"] <= measurement["p99_us"]
                assert 0 < measurement["load_cpu"] < 1.5
                assert 0 < measurement["server_cpu"] < 1.5
    assert {"C epoll", "ngi_gevent"} <= set(result["rows"]["stream-in"]["servers"])
    assert result["machine"]["Python"]
    assert result["machine"]["gevent"]


@needs_compiler
def test_the_targets_are_checked(quick_run):
    targets = json.loads((quick_run[1] / "result.json").read_text())["targets"]
    assert {target["row"] for target in targets} >= {"echo-64x100", "echo-beside-idle", "lines", "round-trips"}
    table = (quick_run[1] / "results.md").read_text().partition("## Targets")[2]
    for target in targets:
        assert target["claim"] in table
    assert table.count("| yes |") + table.count("| **no** |") == len(targets)


@needs_compiler
def test_the_chart_names_each_server(quick_run):
    chart = xml.etree.ElementTree.parse(quick_run[1] / "chart.svg")
    texts = {element.text for element in chart.iter() if element.tag.endswith("text")}
    assert {"ngi_gevent", "StreamServer", "asyncio", "C epoll", "echo 64 B × 100"} <= texts


@needs_compiler
def test_each_step_prints_the_progress(quick_run):
    lines = [line for line in quick_run[0].splitlines() if line.startswith("[")]
    assert [int(line[1:].split("/")[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert "echo-64x100" in lines[0]
    assert "requests/s" in lines[0]
    assert lines[-1].endswith("0:00 left")


@needs_compiler
@pytest.mark.parametrize("name", ["uvloop", "twisted"])
def test_missing_programs_are_skipped_with_a_note(quick_run, name):
    shown = {"uvloop": "uvloop", "twisted": "Twisted"}[name]
    row = json.loads((quick_run[1] / "result.json").read_text())["rows"]["echo-64x100"]
    note = f"{shown} was left out: {name} is not installed."
    installed = importlib.util.find_spec(name) is not None
    assert (shown in row["servers"]) == installed
    assert (note in quick_run[0]) == (note in (quick_run[1] / "results.md").read_text()) == (not installed)


def test_a_server_without_its_library_reports_what_is_missing():
    assert Server("other", "other", "no_such_library").missing == "no_such_library is not installed"
    assert OURS.missing is None


def test_without_a_compiler_only_socket_benchmarks_are_skipped(tmp_path):
    done = run("--quick", "--seconds", "0.05", "--output", str(tmp_path), env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "There is no C compiler (cc)" in done.stdout
    simulated = {f"simulated-{name}" for name in ("seconds", "resets", "races", "memory")}
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert set(rows) == {"lines", "round-trips", *simulated}


@needs_compiler
def test_a_low_descriptor_limit_reduces_the_idle_connections():
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (560, 560))

    done = run("--quick", "--seconds", "0.05", "--only", "idle ngi", preexec_fn=limit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No more than 60 connections were idle: a process may have 560 files open only." in done.stdout
    assert "Memory is measured with 60 idle connections" in done.stdout


def test_a_run_without_matching_benchmarks_is_an_error():
    done = run("--only", "no such thing")
    assert (done.returncode, done.stderr) == (2, "nothing to measure is called like 'no such thing'\n")


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("--rounds", "0", "invalid positive int value: '0'"),
        ("--seconds", "-1", "invalid positive float value: '-1'"),
        ("--seconds", "nan", "invalid positive float value: 'nan'"),
        ("--only", "(", "'(' is not a regular expression"),
    ],
)
def test_an_invalid_option_is_named(option, value, error, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args([f"{option}={value}"])
    assert error in capsys.readouterr().err


@needs_compiler
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [["--only", "echo-64x100 (C|ngi)"], ["--against", "HEAD"]])
@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_an_interrupted_run_leaves_no_process(signal_number, options, repository):
    output = repository / "output"
    output.mkdir()
    process = subprocess.Popen(
        command(*options, "--seconds", "30", "--output", str(output)),
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        until(lambda: running_loads(process.pid))
        process.send_signal(signal_number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (1, b"", b"interrupted: nothing is written\n")
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
        assert list(output.iterdir()) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def until(condition: Callable[[], object]) -> None:
    """Poll until the condition is true.  The timeout of the test limits this."""
    while not condition():
        time.sleep(0.01)


def running_loads(session: int) -> list[str]:
    """Return the names of the load processes in *session*."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            if name == "load" and int(rest.split()[3]) == session:
                found.append(name)
    return found


# The load generator.


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), *two_cores())


@contextlib.contextmanager
def peer(talk: Callable[[socket.socket], None]) -> Iterator[Running]:
    """Run a server in threads of this process.  *talk* is called with each connection."""

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=handle, args=[sock]))
            threads[-1].start()

    def handle(sock: socket.socket) -> None:
        with sock, contextlib.suppress(ConnectionError):
            talk(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=serve)]
        threads[0].start()
        try:
            yield Running(os.getpid(), listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def echo(change: Callable[[int, bytes], bytes]) -> Callable[[socket.socket], None]:
    """Return a server's function: it sends back the result of *change*, which gets each message's number and
    content.
    """

    def talk(sock: socket.socket) -> None:
        count = 0
        while data := sock.recv(64, socket.MSG_WAITALL):
            sock.sendall(change(count, data))
            count += 1

    return talk


def wrong_from(first: int, change: Callable[[bytes], bytes]) -> Callable[[socket.socket], None]:
    return echo(lambda count, data: data if count < first else change(data))


@needs_compiler
@pytest.mark.parametrize("connections", [1, 5])
def test_a_correct_echo_is_counted(bench, connections):
    received = []

    def keep(count: int, data: bytes) -> bytes:
        received.append(data)
        return data

    with peer(echo(keep)) as running:
        result = bench.load("echo", running, connections=connections, seconds=0.1)
    assert 0 < result["operations"] <= len(received) - 2 * connections  # some were not measured
    assert result["bytes"] == result["operations"] * 64
    assert 0.1 <= result["seconds"] < 10
    assert all(data in work.PATTERN + work.PATTERN[:64] for data in received[:100])
    assert len(set(received[:100])) == min(100, len(received))


@needs_compiler
@pytest.mark.parametrize("first", [0, 1, 20])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[:63] + bytes([data[63] ^ 1]), "wrong data: byte 63 of 64"),
        (lambda data: data[32:] + data[:32], "wrong data: byte "),
        (lambda data: data + b"x", "the server sent 65 bytes where 64 were missing"),
    ],
    ids=["changed", "misordered", "more"],
)
def test_a_wrong_echo_is_detected(bench, first, change, error):
    with peer(wrong_from(first, change)) as running, pytest.raises(Failed, match=error):
        bench.load("echo", running, connections=3, seconds=3)


@needs_compiler
def test_a_repeated_older_message_is_detected(bench):
    messages = []

    def again(count: int, data: bytes) -> bytes:
        messages.append(data)
        return messages[0]

    with peer(echo(again)) as running, pytest.raises(Failed, match="wrong data"):
        bench.load("echo", running, seconds=3)


@needs_compiler
@pytest.mark.parametrize("mode", ["echo", "connect", "burst", "stream-out", "stream-in"])
def test_a_lost_connection_is_detected(bench, mode):
    with peer(lambda sock: None) as running, pytest.raises(Failed, match=r"bytes|receipt|reset|Broken pipe"):
        bench.load(mode, running, answer=64, stream=1 << 26, seconds=30)


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@needs_compiler
@pytest.mark.parametrize(("work_on", "least", "most"), [(compute, 9_900, 20_000), (time.sleep, 1, 9_000)])
def test_processor_time_includes_computing_but_not_sleeping(bench, work_on, least, most):
    """For each message, the server computes or sleeps for 10 ms."""

    def slowly(count: int, data: bytes) -> bytes:
        work_on(0.01)
        return data

    with peer(echo(slowly)) as running:
        rate, cpu = rate_and_cpu(bench.load("echo", running, seconds=0.1))
    assert 0 < rate.value < 101  # messages per second
    assert least <= cpu.value <= most


def answer_stream(change: Callable[[bytes], bytes]) -> Callable[[socket.socket], None]:
    return lambda sock: sock.sendall(change(b"".join(work.stream(sock.recv(8)))))


def acknowledge(change: Callable[[int], int]) -> Callable[[socket.socket], None]:
    def talk(sock: socket.socket) -> None:
        (size,) = work.SIZE.unpack(sock.recv(8, socket.MSG_WAITALL))
        left = size
        while left:
            left -= len(sock.recv(65536))
        sock.sendall(work.SIZE.pack(change(size)))

    return talk


@needs_compiler
@pytest.mark.parametrize(
    ("mode", "talk", "error"),
    [
        ("stream-out", answer_stream(lambda data: data), None),
        ("stream-out", answer_stream(lambda data: data[65536:131072] + data[:65536] + data[131072:]), "wrong data"),
        ("stream-out", answer_stream(lambda data: data[:-1]), "the server sent 262143 bytes, not 262144"),
        (
            "stream-out",
            answer_stream(lambda data: data + work.PATTERN[len(data) :][:1]),
            "the server sent 262145 bytes, not 262144",
        ),
        ("stream-in", acknowledge(lambda size: size), None),
        ("stream-in", acknowledge(lambda size: size - 1), "the server received 262143 bytes, not 262144"),
    ],
)
def test_streams_are_checked(bench, mode, talk, error):
    with peer(talk) as running:
        if error is None:
            assert bench.load(mode, running, stream=1 << 22)["bytes"] == 1 << 22
        else:
            with pytest.raises(Failed, match=error):
                bench.load(mode, running, stream=1 << 22)  # its warm-up is a 16th of that


@needs_compiler
def test_latencies_include_the_servers_delay(bench):
    def slowly(count: int, data: bytes) -> bytes:
        time.sleep(0.02)
        return data

    with peer(echo(slowly)) as running:
        result = bench.load("echo", running, seconds=0.3)
    assert 20_000 <= result["median_us"] <= result["p99_us"] < 10_000_000


@needs_compiler
def test_percentiles_are_close_to_the_exact_ones(tmp_path):
    """The load generator's histogram has a known error, and its percentiles are within that."""
    program = tmp_path / "percentiles.c"
    program.write_text(f"""
        #define main load_main
        #include "{ROOT / "benchmarks" / "load.c"}"
        #undef main
        int main(void) {{
            unsigned long long value;
            while (scanf("%llu", &value) == 1)
                record(value);
            printf("%f %f %f", percentile(0.5), percentile(0.99), percentile(1));
        }}
    """)
    subprocess.run([str(COMPILER), "-o", str(tmp_path / "percentiles"), str(program)], check=True)
    chance = random.Random(1)
    for values in [0], [7, 8], [10**12], [int(chance.lognormvariate(10, 3)) for _ in range(9999)]:
        answer = subprocess.run(
            [str(tmp_path / "percentiles")], input=" ".join(map(str, values)), capture_output=True, text=True
        ).stdout
        values.sort()
        exact = [values[-(-len(values) * percent // 100) - 1] for percent in (50, 99, 100)]
        assert [float(value) for value in answer.split()] == [pytest.approx(value, rel=0.016) for value in exact]


# Servers of real protocols, and real clients.

GET = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
CONVERSATIONS = {
    "resp": [
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$1\r",
        b"\na\r\n*1\r\n$8\r\nnonsense\r\n*1\r\n:1\r\n*1\r\n$4\r\nPING\r\n",
    ],
    "http": [GET % b"/hello" + POST[:50], POST[50:] + GET % b"/chunks" + b"GET /nowhere HTTP/1.0\r\n\r\n"],
}


@needs_compiler
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_all_servers_of_a_real_protocol_give_the_same_answers(bench, name):
    pytest.importorskip({"resp": "hiredis", "http": "h11"}[name])

    def answer(server: Server) -> bytes:
        with bench.serving(server, name) as running, socket.create_connection(("127.0.0.1", running.port)) as client:
            client.settimeout(60)
            for piece in CONVERSATIONS[name]:
                client.sendall(piece)
            return b"".join(iter(lambda: client.recv(65536), b""))

    ours = answer(OURS)
    assert ours.count(b"\r\n") > 5
    for server in PYTHON_SERVERS[1:]:
        if not server.missing:
            assert answer(server) == ours, server


@pytest.mark.parametrize("name", REAL)
def test_missing_requirements_of_a_real_protocol_are_named(name, monkeypatch):
    (case,) = [case for case in CASES if case.name == name]
    monkeypatch.setattr("benchmarks.cases.shutil.which", lambda program: None)
    assert case.missing == f"{'wrk' if 'http' in name else 'redis-benchmark'} is not installed"
    monkeypatch.setattr("benchmarks.cases.shutil.which", str)
    monkeypatch.setattr("benchmarks.cases.importlib.util.find_spec", lambda library: None)
    assert case.missing == f"{'h11' if 'http' in name else 'hiredis'} is not installed"
    assert CASES[0].missing is None


WRK = """\
  Latency Distribution
     50%   {p50}
     75%    8.48ms
     90%   37.36ms
     99%    {p99}
  5860 requests in 2.00s, 389.14KB read
"""


def test_the_figures_that_real_clients_print_are_parsed():
    output = '"test","rps","p50_latency_ms","p99_latency_ms"\n"GET","5000.00","6.695","36.799"\n'
    figures = clients.figures_of_redis_benchmark(output, 10_000)
    assert figures == pytest.approx({"operations": 10_000, "seconds": 2, "median_us": 6695, "p99_us": 36799})
    figures = clients.figures_of_wrk(WRK.format(p50="749.00us", p99="1.05s"))
    assert figures == pytest.approx({"operations": 5860, "seconds": 2, "median_us": 749, "p99_us": 1_050_000})


@pytest.mark.parametrize("output", ["", WRK.format(p50="1m", p99="1s"), WRK + "  Socket errors: connect 0, read 1"])
def test_a_client_with_unexpected_output_has_failed(output):
    with pytest.raises(Failed, match="wrk printed"):
        clients.figures_of_wrk(output)
    with pytest.raises(Failed, match="redis-benchmark printed"):
        clients.figures_of_redis_benchmark(output, 1)


@needs_compiler
def test_processor_time_with_a_real_client_excludes_the_client(bench):
    def compute_for(data: bytes) -> bytes:
        compute(0.2)
        return data

    with peer(echo(lambda count, data: compute_for(data))) as running:
        client = (
            "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); s.sendall(bytes(64));"
        )
        _, took = bench.client([sys.executable, "-c", f"{client} s.recv(64)", str(running.port)], running)
    assert 0.2 <= took["server_time"] < 0.2 + took["seconds"]
    assert 0 < took["load_time"] < 10


# Servers that fail.

BROKEN = Server("broken", "no_such_module", "gevent")


@needs_compiler
def test_a_server_that_does_not_start_is_reported_with_its_last_output(bench):
    with pytest.raises(Failed, match=r"did not become ready\n(?s:.*)no_such_module"), bench.serving(BROKEN, "echo"):
        pass


@needs_compiler
def test_the_standard_error_of_a_server_is_reported(bench):
    def ask_with_one_byte() -> None:
        with bench.serving(STREAM_SERVER, "send") as running:
            bench.load("echo", running, request=1, seconds=30)

    with pytest.raises(Failed, match=r"(?s)the server closed a connection.*struct\.error"):
        ask_with_one_byte()


@needs_compiler
def test_a_failure_is_reported_and_does_not_end_the_run(bench, capsys):
    case = Case(CASES[0].rows, (OURS, BROKEN, FLOOR), CASES[0].measure)
    settings = QUICK.__class__(rounds=1, seconds=0.05, warm_up=0.01, stream=1, idle=10, simulated=10)
    figures = measured(bench, planned([case], 1, EVERYTHING), settings)
    assert [(failure.row, failure.server) for failure in figures.failures] == [
        ("echo-64x100", "broken"),
        ("echo-64x100-cpu", "broken"),
    ]
    assert figures.spread("echo-64x100", FLOOR) is not None
    assert figures.spread("echo-64x100-cpu", FLOOR) is not None
    assert "FAILED: " in capsys.readouterr().out
    text = report.markdown(report.Run({"Python": "3"}, settings, [case], figures, []))
    assert "| **failed** 1 × |" in text
    assert text.count("No module named benchmarks.servers.no_such_module") == 1
    assert "echo-64x100, echo-64x100-cpu, broken, round 1:" in text


# Arithmetic.


def figures_of(**values: list[float]) -> Figures:
    """Return figures with one row, and one measurement per round for each server.  NaN stands for a missing
    measurement.
    """
    servers = {"ours": OURS, "stream_server": STREAM_SERVER, "uvloop": UVLOOP}
    figures = Figures()
    for name, of_rounds in values.items():
        for number, value in enumerate(of_rounds, 1):
            if value == value:
                figures.add("row", servers[name], number, Measurement(value))
    return figures


def test_a_ratio_is_the_median_of_the_ratios_in_each_round():
    figures = figures_of(ours=[100, 10, 50], stream_server=[50, 4, 50])
    assert figures.against("row", STREAM_SERVER) == Spread(2, 1, 2.5)
    assert figures.spread("row", OURS) == Spread(50, 10, 100)


def test_a_round_with_a_missing_measurement_has_no_ratio():
    figures = figures_of(ours=[100, float("nan"), 30], stream_server=[float("nan"), 1, 10])
    assert figures.against("row", STREAM_SERVER) == Spread(3, 3, 3)
    assert figures.against("row", UVLOOP) is None


def test_the_best_server_is_chosen_from_the_others_in_python():
    figures = figures_of(ours=[9], stream_server=[2], uvloop=[3])
    figures.add("row", FLOOR, 1, Measurement(10))
    assert best_of(figures, "row") is UVLOOP
    for server, took in (OURS, 1), (STREAM_SERVER, 2), (UVLOOP, 3):
        figures.add("row-cpu", server, 1, Measurement(took))
    assert best_of(figures, "row-cpu") is STREAM_SERVER
    assert best_of(Figures(), "row") is None


def test_targets_are_lower_or_upper_bounds():
    (memory,) = [target for target in TARGETS if target.row == "idle"]
    (lines,) = [target for target in TARGETS if target.row == "lines"]
    assert [memory.reached(Spread(ratio, 0, 9)) for ratio in (0.5, 1, 1.01)] == [True, True, False]
    assert [lines.reached(Spread(rate, 0, 9)) for rate in (999_999, 1_000_000)] == [False, True]


def test_targets_for_processor_time_are_upper_bounds():
    targets = {(target.row, target.claim): target for target in TARGETS if target.row.endswith("-cpu")}
    assert set(targets) == {
        ("echo-64x1-cpu", "≤ 1.35 × uvloop"),
        ("echo-64x1-cpu", "≤ 0.75 × StreamServer"),
        ("echo-64x8-cpu", "≤ 1.15 × uvloop"),
        ("echo-64x100-cpu", "≤ 1.05 × uvloop"),
        ("echo-64Kx100-cpu", "≤ 1.0 × uvloop"),
        ("connect-cpu", "≤ 0.95 × StreamServer"),
        *((f"{work}-cpu", "≤ 1.0 × the best other") for work in REAL),
    }
    for (_, claim), target in targets.items():
        bound = float(claim.split()[1])
        assert [target.reached(Spread(ratio, 0, 9)) for ratio in (bound, bound + 0.01)] == [True, False]


def test_every_rate_on_sockets_is_shown_with_its_processor_time():
    for case in CASES:
        rows = list(case.rows)
        for rate in rows:
            if case.on_sockets and rate.unit.endswith("/s"):
                assert rows[rows.index(rate) + 1].name == f"{rate.name}-cpu"
    assert [row.unit for row in with_cpu("connect", "connect", "connections")] == ["connections/s", "µs/connection"]
    assert [row.unit for row in with_cpu("stream-in", "stream in", "MB")] == ["MB/s", "µs/MB"]


def test_processor_time_is_per_unit_of_the_rate():
    result = {"operations": 300.0, "bytes": 6e6, "seconds": 2.0, "server_cpu": 0.75}
    assert [measurement.value for measurement in rate_and_cpu(result)] == [150, 5_000]
    assert [measurement.value for measurement in rate_and_cpu(result, "bytes", 1e6)] == [3, 250_000]


def test_processor_time_is_in_the_tables_with_its_ratios():
    figures = Figures()
    for server, microseconds in ((OURS, 15), (UVLOOP, 10), (STREAM_SERVER, 25), (FLOOR, 5)):
        figures.add("echo-64x1-cpu", server, 1, Measurement(microseconds))
    text = report.markdown(report.Run({"Python": "3"}, QUICK, CASES, figures, []))
    title = "echo 64 B × 1: processor time (less is better)"
    assert f"| {title} | µs/request | 15 | 0.60 |  | **1.50** |  |" in text
    assert f"| {title} | ≤ 1.35 × uvloop | 1.50 (1.50-1.50) | **no** |" in text
    assert f"| {title} | ≤ 0.75 × StreamServer | 0.60 (0.60-0.60) | yes |" in text
    cells = "25<br>× 0.60 (0.60-0.60) | 10<br>× 1.50 (1.50-1.50) | 5<br>× 3.00 (3.00-3.00)"
    assert f"| {title} | µs/request | 15 | {cells} |" in text


def test_the_chart_shows_its_panels_in_order():
    figures = Figures()
    for row in (row for case in CASES for row in case.rows):
        figures.add(row.name, OURS, 1, Measurement(1))
    machine = {"processor": "x", "Python": "3", "date": "today"}
    heads = re.findall(r'class="head"[^>]*>([^<]*)<', chart.svg(figures, machine))
    assert heads[1:] == ["echo 64 B × 1", "echo 64 B × 100", "RESP × 50, redis-benchmark", "HTTP × 50, wrk"]


# Growth of costs.


@needs_compiler
def test_the_cost_of_each_kind_of_work_is_measured_for_each_amount_and_drawn(bench, tmp_path):
    few = [
        replace(series, amounts=series.amounts[:2]) for series in growth.SERIES if series.measure != growth.of_workers
    ]
    growths = growth.measured(bench, few, 1)
    assert [tuple(found.costs) for found in growths] == [series.amounts for series in few]
    assert all(cost.median > 0 for found in growths for cost in found.costs.values())
    growth.write(growths, 1, tmp_path / "new")
    text = (tmp_path / "new" / "growth.md").read_text()
    assert [series.title for series in few] == re.findall("^## (.*)$", text, re.MULTILINE)
    drawn = xml.etree.ElementTree.parse(tmp_path / "new" / "growth.svg")
    points = [element for element in drawn.iter() if element.get("class") == "point"]
    assert len(points) == sum(len(series.amounts) for series in few)


@pytest.mark.parametrize(("power", "is_bounded"), [(0, True), (0.09, True), (0.11, False), (1, False), (-1, True)])
def test_a_cost_that_grows_faster_than_its_work_is_found(power, is_bounded):
    series = replace(growth.SERIES[0], amounts=(10, 100, 1_000))
    costs = {amount: Spread(5 * amount**power, 0, 0) for amount in series.amounts}
    found = growth.Growth(series, costs)
    assert found.exponent == pytest.approx(power)
    assert found.is_bounded is is_bounded
    assert ("more than the limit" in growth.markdown([found], {}, 1)) is not is_bounded


def test_every_target_names_an_existing_row():
    assert {target.row for target in TARGETS} <= {row.name for case in CASES for row in case.rows}


def test_a_figure_that_the_load_generator_limited_is_marked():
    figures = Figures()
    figures.add("row", OURS, 1, Measurement(1234, load_cpu=0.99, server_cpu=0.5))
    figures.add("row", STREAM_SERVER, 1, Measurement(617, load_cpu=0.99, server_cpu=0.99))
    case = Case((Row("row", "the row", "a second"),), (OURS, STREAM_SERVER), CASES[0].measure)
    text = report.markdown(report.Run({"Python": "3"}, QUICK, [case], figures, []))
    assert "| the row | a second | ≥ 1,234 | 617<br>× 2.00 (2.00-2.00) |" in text
    assert "| the row | ngi_gevent | 1,234 | 1,234 | 1,234 |  |  | 50% | 99% |" in text
    assert "| the row | StreamServer | 617 | 617 | 617 |  |  | 99% | 99% |" in text


def test_a_disturbed_run_is_reported():
    figures = Figures()
    for number, share in enumerate((0.01, 0.2, 0.4), 1):
        figures.add("echo-64x100", OURS, number, Measurement(1, disturbed=share))
    text = report.markdown(report.Run({"Python": "3"}, QUICK, CASES, figures, []))
    assert "In 2 of 3 measurements another process" in text


def test_rounds_are_interleaved_and_each_starts_with_another_server():
    steps = planned(CASES[:2], 2, re.compile("x100 [^C]"))
    assert [step.round for step in steps] == [1] * 10 + [2] * 10
    assert [step.case for step in steps] == ([CASES[0]] * 5 + [CASES[1]] * 5) * 2
    assert [step.server for step in steps[:5]] == list(PYTHON_SERVERS)
    assert [step.server for step in steps[10:15]] == [*PYTHON_SERVERS[1:], PYTHON_SERVERS[0]]


# Work in memory.


def test_work_in_memory_counts_the_delivered_items():
    chunk = in_memory.chunk_of_lines()
    assert len(chunk) == 65536
    assert [next(in_memory.lines()), next(in_memory.split())] == [chunk.count(b"\n")] * 2
    trips = in_memory.round_trips()
    assert [next(trips), next(trips)] == [1000, 2000]


def test_work_in_a_simulation_checks_its_results():
    assert [next(simulated.resets()), next(simulated.races())] == [10, 1]
    seconds = simulated.seconds()
    assert [next(seconds), next(seconds)] == [10, 20]
    seconds.close()


def test_a_rate_in_memory_uses_its_own_duration():
    def counts() -> Iterator[int]:
        count = 0
        while True:
            time.sleep(0.001)
            count += 1
            yield count

    result = in_memory.measured(counts(), 0.2)
    assert 0.2 <= result["seconds"] < 10
    assert 0 < result["operations"] <= result["seconds"] * 1000


# The servers' output.


def test_a_stream_repeats_the_pattern():
    for size in 0, 1, 65536, 65537, 3 * len(work.PATTERN) + 5:
        data = b"".join(work.stream(work.SIZE.pack(size)))
        assert data == (4 * work.PATTERN)[:size]


def test_a_receipt_is_sent_with_the_last_byte():
    receipt = work.Receipt()
    assert receipt.count(work.SIZE.pack(5) + b"ab") is None
    assert receipt.count(b"cd") is None
    assert receipt.count(b"e") == work.SIZE.pack(5)
