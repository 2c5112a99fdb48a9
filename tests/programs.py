"""The example programs, run as users run them: each in a separate process, with clients, until a signal stops it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def command(name: str, *arguments: object) -> list[str]:
    """Return a command that runs an example with warnings as errors."""
    return [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / name), *map(str, arguments)]


def run(
    name: str, *arguments: object, before: Sequence[str] = (), **options: object
) -> subprocess.CompletedProcess[str]:
    """Run an example that ends by itself.  Its command starts with *before*."""
    line = [*before, *command(name, *arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=30, **options)


class Server:
    """An example server, whose first line of output names its address."""

    def __init__(self, name: str, *arguments: object, before: Sequence[str] = (), **options: object) -> None:
        line = [*before, *command(name, *arguments)]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        self.first_line = self.process.stdout.readline().decode()
        self.address = self.first_line.removeprefix("listening on ").strip()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def connect(self) -> socket.socket:
        host = self.address.rpartition(":")[0]
        return socket.create_connection((host.strip("[]"), self.port), timeout=30)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        self.process.send_signal(signal_number)

    def end(self) -> tuple[int, str, str]:
        """Wait until the process ends; return exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out.decode(), err.decode()


@contextlib.contextmanager
def running(name: str, *arguments: object, **options: object) -> Iterator[Server]:
    """Run an example server, and kill it in the end if it still runs."""
    server = Server(name, *arguments, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))
