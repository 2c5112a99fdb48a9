"""The real gunicorn, started by tests: its processes and its log."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from stages import PATIENCE

ROOT = Path(__file__).parent.parent

try:
    from gunicorn.config import KNOWN_SETTINGS
except ImportError:  # without gunicorn, its tests are skipped
    KNOWN_SETTINGS = []

#: Since version 25.1, gunicorn creates a control socket in the home directory.
NO_CONTROL_SOCKET = ["--no-control-socket"] * any(each.name == "control_socket_disable" for each in KNOWN_SETTINGS)


def command(*arguments: object) -> list[str]:
    """Return a command that starts gunicorn with this package's worker."""
    return [
        *(sys.executable, "-m", "gunicorn", *NO_CONTROL_SOCKET),
        *("-k", "ngi_gevent.gunicorn.Worker", *map(str, arguments)),
    ]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


class Gunicorn:
    """A gunicorn master and its workers, in a separate process group."""

    def __init__(self, directory: Path, *arguments: object, **options: object) -> None:
        self.directory = directory
        self.log: list[str] = []
        self._over = False
        self._changed = threading.Condition()
        options.setdefault("env", environment())
        self.process = subprocess.Popen(
            options.pop("command", None) or command(*arguments),
            cwd=directory,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            with self._changed:
                self.log.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def says(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until *count* lines of the log match *pattern*, and return the last of these matches."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.log if (match := re.search(pattern, line))]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count or self._over, PATIENCE)
            assert len(found()) >= count, "\n".join([f"no {pattern!r}", *self.log])
            return found()[count - 1]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.says(r"Listening at: https?://([\d.]+):(\d+)").groups()
        return host, int(port)

    def connect(self, path: str | None = None) -> socket.socket:
        if path is None:
            sock = socket.create_connection(self.address, timeout=PATIENCE)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(PATIENCE)
            sock.connect(str(self.directory / path))
        return sock

    def ask(self, question: str, path: str | None = None) -> str:
        """Ask *question* on a new connection, and return the answer."""
        with self.connect(path) as client:
            return ask(client, question)

    def workers(self, count: int, before: set[int] = frozenset(), path: str | None = None) -> set[int]:
        """Ask for process ids until *count* workers have answered that are not in *before*; return the ids."""
        found: set[int] = set()
        while len(found) < count:
            found |= {int(self.ask("pid", path))} - before
        return found

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int | None = signal.SIGTERM) -> int:
        """Send the signal *number*, if any, wait for the end, and return the exit code."""
        if number is not None:
            self.send(number)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()


def ask(client: socket.socket, question: str) -> str:
    client.sendall(question.encode())
    return read_line(client)


def read_line(client: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n") and (data := client.recv(1)):
        line += data
    return line.decode().strip()


@contextlib.contextmanager
def running(directory: Path, *arguments: object, **options: object) -> Iterator[Gunicorn]:
    """Run gunicorn, and kill its remaining processes in the end."""
    gunicorn = Gunicorn(directory, *arguments, **options)
    try:
        yield gunicorn
    finally:
        gunicorn.kill()
