"""The clients from other projects that drive servers of real protocols: redis-benchmark and wrk."""

from __future__ import annotations

import csv
import re
from math import ceil

from benchmarks.processes import Bench, Failed, Running

#: Requests of the first run, multiplied by the number of pipelined requests.  Its rate determines the size of the
#: measured run.
FIRST = 2000


def redis_benchmark(
    bench: Bench, running: Running, seconds: float, *, connections: int, pipelined: int = 1
) -> dict[str, float]:
    """GET a value of 64 bytes for some *seconds*.  Each connection sends *pipelined* requests at a time."""

    def run(test: str, requests: int) -> dict[str, float]:
        options = {"-p": running.port, "-t": test, "-d": 64, "-n": requests, "-c": connections, "-P": pipelined}
        command = ["redis-benchmark", "--csv", *(str(part) for option in options.items() for part in option)]
        output, took = bench.client(command, running)
        return _with_shares(figures_of_redis_benchmark(output, requests), took)

    before = run("set", FIRST * pipelined)
    return run("get", max(FIRST, ceil(seconds * before["operations"] / before["seconds"])))


def figures_of_redis_benchmark(output: str, requests: int) -> dict[str, float]:
    try:
        (row,) = csv.DictReader(output.splitlines())
        rate = float(row["rps"])
        latencies = {f"{name}_us": float(row[column]) * 1e3 for name, column in _LATENCIES.items()}
        return {"operations": requests, "seconds": requests / rate, **latencies}
    except (ValueError, KeyError, ZeroDivisionError):
        raise Failed(f"redis-benchmark printed {output!r:.500}") from None


_LATENCIES = {"median": "p50_latency_ms", "p99": "p99_latency_ms"}


def wrk(bench: Bench, running: Running, seconds: float, *, connections: int) -> dict[str, float]:
    """GET ``/hello`` for some *seconds*, rounded up for wrk, on connections that are kept alive."""
    url = f"http://127.0.0.1:{running.port}/hello"
    command = ["wrk", "--latency", "-t", "1", "-c", str(connections), "-d", f"{ceil(seconds)}s", url]
    output, took = bench.client(command, running)
    return _with_shares(figures_of_wrk(output), took)


def figures_of_wrk(output: str) -> dict[str, float]:
    done = re.search(r"(\d+) requests in ([\d.]+)s", output)
    percentiles = dict(re.findall(r"^ +(\d+)% +([\d.]+[mu]?s)$", output, re.MULTILINE))
    if done is None or not {"50", "99"} <= percentiles.keys() or int(done[1]) == 0 or "errors" in output:
        raise Failed(f"wrk printed {output!r:.500}")
    return {
        "operations": int(done[1]),
        "seconds": float(done[2]),
        "median_us": _microseconds(percentiles["50"]),
        "p99_us": _microseconds(percentiles["99"]),
    }


def _microseconds(text: str) -> float:
    for unit, factor in ("us", 1), ("ms", 1e3), ("s", 1e6):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise Failed(f"wrk printed the time {text!r}")


def _with_shares(figures: dict[str, float], took: dict[str, float]) -> dict[str, float]:
    """Return *figures*, and the processor time of the server and of the load, for one core."""
    return {**figures, **{f"{name}_cpu": took[f"{name}_time"] / figures["seconds"] for name in ("server", "load")}}
