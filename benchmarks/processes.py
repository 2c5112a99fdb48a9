"""The processes: each server in its own process, pinned to one core, and the load pinned to another."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import work

HERE = Path(__file__).parent

#: Seconds within which a server must listen, connections must be open, or a measurement without a set time must end.
PATIENCE = 60.0

#: Seconds that a failed process has to write its error.
LAST_WORDS = 0.5


class Failed(Exception):
    """A measurement failed; the message has the reason."""


COMPILER = shutil.which("cc")


@dataclass(frozen=True)
class Server:
    """A measured server: the *name* that tables show, and its *module* in ``benchmarks.servers``."""

    name: str
    module: str
    library: str = ""  # modules that must be installed for it
    argument: str = ""
    tree: Path = HERE.parent  # the checkout that it is run from

    @property
    def missing(self) -> str | None:
        """Return why the server cannot run, if its library is missing."""
        return f"{self.library} is not installed" if importlib.util.find_spec(self.library) is None else None


OURS = Server("ngi_gevent", "ngi", "ngi_gevent")
STREAM_SERVER = Server("StreamServer", "stream_server", "gevent")
ASYNCIO = Server("asyncio", "asyncio_protocol", "asyncio", "asyncio")
UVLOOP = Server("uvloop", "asyncio_protocol", "uvloop", "uvloop")
TWISTED = Server("Twisted", "twisted_protocol", "twisted")
FLOOR = Server("C epoll", "epoll", "benchmarks")  # a program, not a module

PYTHON_SERVERS = (OURS, STREAM_SERVER, ASYNCIO, UVLOOP, TWISTED)
SERVERS = (*PYTHON_SERVERS, FLOOR)


@dataclass(frozen=True)
class Running:
    """A running server, on a port of the loopback interface."""

    process: int
    port: int

    def private_memory(self) -> int:
        """Bytes of private memory that the process has written to, without the kernel's memory for its sockets."""
        try:
            lines = Path(f"/proc/{self.process}/smaps_rollup").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))
        except (OSError, StopIteration) as error:
            raise Failed(f"the kernel does not report the memory of the server: {error!r}") from None

    def processor_time(self) -> float:
        """Processor seconds of all its threads, in user code and in the kernel."""
        return time.clock_gettime(~self.process << 3 | 2)  # computed as clock_getcpuclockid does


class Bench:
    """The two cores, and the directory with the programs built for the benchmarks."""

    def __init__(self, directory: Path, server_core: int, load_core: int) -> None:
        self._directory = directory
        self._pattern = directory / "pattern"
        self._pattern.write_bytes(2 * work.PATTERN)  # twice, so that each piece continues past the end of the first
        self._server_core = server_core
        self._load_core = load_core
        if COMPILER:
            self._compile(HERE / "load.c")
            self._compile(HERE / "servers" / "epoll.c")

    def _compile(self, source: Path) -> None:
        command = [str(COMPILER), "-O2", "-o", str(self._directory / source.stem), str(source)]
        compiled = subprocess.run(command, capture_output=True, text=True)
        if compiled.returncode:
            raise SystemExit(f"{source} does not compile:\n{compiled.stderr}")

    @contextmanager
    def serving(self, server: Server, what: str) -> Iterator[Running]:
        """Run *server* during the block, for the work *what*."""
        if server is FLOOR:
            command = [str(self._directory / "epoll"), what, str(self._pattern)]
        else:
            command = [sys.executable, "-m", f"benchmarks.servers.{server.module}", what, server.argument]
        with self._started(command, self._server_core, stdin=subprocess.DEVNULL, cwd=server.tree) as process:
            yield Running(process.pid, int(_first_line(process, "ready").split()[1]))

    def load(self, mode: str, running: Running, **options: float) -> dict[str, float]:
        """Run the load until it ends.  Return its measurements."""
        seconds = options.get("seconds", 0) + options.get("warm_up", 0)
        with self._started(self._load_command(mode, running, options), self._load_core) as process:
            return _report(process, seconds + PATIENCE)

    def client(self, command: list[str], running: Running) -> tuple[str, dict[str, float]]:
        """Run a client from another project until it ends.  Return its output, and how long it took.

        The start and end of the client are included.  Times are in seconds: wall clock, server, and load.
        """
        began, load, server = time.perf_counter(), _time_of_children(), running.processor_time()
        with self._started(command, self._load_core, stdin=subprocess.DEVNULL) as process:
            output = _output(process, PATIENCE)
        took = {"server_time": running.processor_time() - server, "load_time": _time_of_children() - load}
        return output, {"seconds": time.perf_counter() - began, **took}

    @contextmanager
    def held(self, running: Running, connections: int) -> Iterator[None]:
        """Keep that many idle connections open during the block.  Each has echoed something."""
        command = self._load_command("hold", running, {"connections": connections})
        with self._started(command, self._load_core, stdin=subprocess.PIPE) as process:
            _first_line(process, "held")
            yield

    def in_memory(self, what: str, seconds: float) -> dict[str, float]:
        """Run work that needs no sockets, on the core of the servers."""
        command = [sys.executable, "-m", "benchmarks.in_memory", what, str(seconds)]
        with self._started(command, self._server_core) as process:
            return _report(process, seconds + PATIENCE)

    def _load_command(self, mode: str, running: Running, options: dict[str, Any]) -> list[str]:
        values = {"pattern": self._pattern, "port": running.port, "server": running.process, **options}
        command = [str(self._directory / "load"), mode]
        for name, value in values.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        return command

    @contextmanager
    def _started(self, command: list[str], core: int, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A process on *core*, which is killed at the end.  If the process or the block fails, the error shows its last
        output.
        """
        with ExitStack() as stack:
            errors = stack.enter_context(tempfile.TemporaryFile(dir=self._directory))
            options = {"stdout": subprocess.PIPE, "stderr": errors, "cwd": HERE.parent, **options}
            process = stack.enter_context(subprocess.Popen(command, **options))
            stack.callback(process.wait)  # leaving Popen itself does not ensure this after Ctrl-C
            stack.callback(process.kill)
            os.sched_setaffinity(process.pid, {core})
            try:
                yield process
            except Failed as error:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LAST_WORDS)
                raise Failed(f"{error}{_tail(errors.fileno())}") from None


def kill_children() -> None:
    """Kill the processes that were started here, also one whose start was interrupted."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for process in children.read_text().split() if children.exists() else []:
        os.kill(int(process), signal.SIGKILL)
        os.waitpid(int(process), 0)


def two_cores() -> tuple[int, int]:
    """Return a core for the server and one for the load.  If possible, they are not two threads of the same core.

    If there is only one core, it is used for both.
    """
    cores = sorted(os.sched_getaffinity(0))
    siblings = _siblings(cores[0])
    others = [core for core in cores if core not in siblings] or cores[1:] or cores
    return cores[0], others[0]


def _siblings(core: int) -> set[int]:
    """Return the threads of the physical core to which *core* belongs."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    if not path.exists():
        return {core}
    siblings: set[int] = set()
    for part in path.read_text().strip().split(","):
        first, _, last = part.partition("-")
        siblings.update(range(int(first), int(last or first) + 1))
    return siblings


def raise_limit_of_files() -> int:
    """Allow this process, and its children, as many open files as possible.  Return the number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize


def _first_line(process: subprocess.Popen[bytes], word: str) -> str:
    """Return the line in which *process* reports that it is ready."""
    assert process.stdout is not None
    line = ""
    if select.select([process.stdout], [], [], PATIENCE)[0]:
        line = process.stdout.readline().decode()
    if not line.startswith(word):
        raise Failed(f"{Path(process.args[0]).name} did not become ready")  # type: ignore[index, arg-type]
    return line


def _time_of_children() -> float:
    """Processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _report(process: subprocess.Popen[bytes], timeout: float) -> dict[str, float]:
    report: dict[str, float] = json.loads(_output(process, timeout))
    return report


def _output(process: subprocess.Popen[bytes], timeout: float) -> str:
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {timeout:.0f} seconds") from None
    if process.returncode:
        raise Failed(f"exit code {process.returncode}")
    return str(out, "utf-8", "replace")


def _tail(errors: int) -> str:
    """The last standard error output of a process."""
    size = os.fstat(errors).st_size
    text = os.pread(errors, 1000, max(0, size - 1000)).decode(errors="replace").strip()
    return "\n" + text if text else ""
