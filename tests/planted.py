"""Mistakes that are planted in a copy of the package, one at a time, for the random lives to find.

``python tests/planted.py`` prints, for each mistake, the first seed that finds it, and the broken rule.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import ngi_gevent

#: The tested package.  If it is installed, it is not next to the tests.
PACKAGE = Path(ngi_gevent.__file__).parent

#: The number of seeds tried for each mistake.
MOST = 10_000


class Mistake(NamedTuple):
    """A mistake: a piece of a module's code, and its replacement."""

    module: str
    right: str
    wrong: str


MISTAKES = {
    "a wake-up is lost: reading does not resume when output is taken": Mistake(
        "sockets/sender.py",
        "            if self.end_pause():\n                self._connection.wake()\n",
        "            self.end_pause()\n",
    ),
    "a flag is reset too late: events that come while others are handled are forgotten": Mistake(
        "sockets/stream.py",
        "        while not self._events_pending or self._handle_events():\n            self.waiting = True\n",
        "        while not self._events_pending or self._handle_events():\n"
        "            self._events_pending = False\n            self.waiting = True\n",
    ),
    "a callback comes after the application's close: input is delivered": Mistake(
        "sockets/stream.py",
        "            self.waiting = False\n            if self._events_pending:\n                continue\n",
        "            self.waiting = False\n",
    ),
    "an off-by-one in the water marks: drain returns with as much pending as was asked for": Mistake(
        "core/output.py", "self.pending < below and", "self.pending <= below and"
    ),
    "the timer of a connection attempt is not stopped": Mistake(
        "sockets/connector.py",
        "            for closeable in closeables:\n                closeable.close()\n",
        "            pass\n",
    ),
    "a byte is sent twice after a partial send": Mistake(
        "core/output.py", "memoryview(piece)[sent:]", "memoryview(piece)[max(0, sent - 1) :]"
    ),
    "a connection closes without waiting for its peer": Mistake(
        "sockets/linger.py",
        "+ DISCARD_TIMEOUT\n        self._wait_on()\n",
        "+ DISCARD_TIMEOUT\n        self._connection.handle(LOSE)\n",
    ),
    "a wake-up is lost: output that is written outside of a callback is not sent": Mistake(
        "sockets/dispatcher.py",
        "        if not unsent and not self.is_dispatching:\n            self.loop.run_callback(self._dispatch)\n",
        "",
    ),
    "the rest of a batch is forgotten when a turn ends": Mistake(
        "sockets/dispatcher.py", "            self.ready[:0] = reversed(self.batch)\n", ""
    ),
    "a connection that has ended is not forgotten by its listener": Mistake(
        "core/listening.py",
        "        del self._connections[connection]\n        self._check_empty()\n",
        "        if len(self._connections) < 3:\n            del self._connections[connection]\n"
        "        self._check_empty()\n",
    ),
    "accepting does not resume when there is room again": Mistake(
        "sockets/acceptor.py",
        "        if not (self._retry.is_pending or self.closed):\n            self.start_accepting()\n",
        "",
    ),
    "what is written behind an iterable overtakes it": Mistake(
        "sockets/sender.py",
        "        if self.feeder is None:\n            self.queue(data)\n        else:\n"
        "            self.feeder.append(data)\n",
        "        self.queue(data)\n",
    ),
    "an iterable is not pulled from again once the peer takes output": Mistake(
        "sockets/sender.py", "                self.feeder.on_drained()\n", "                pass\n"
    ),
}


@contextmanager
def planted(mistake: Mistake | None) -> Iterator[dict[str, str]]:
    """Copy the package with one mistake, and yield an environment in which the copy is imported."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder) / "ngi_gevent", ignore=shutil.ignore_patterns("__pycache__"))
        if mistake is not None:
            path = Path(folder) / "ngi_gevent" / mistake.module
            code = path.read_text()
            assert code.count(mistake.right) == 1, f"{mistake.module} has changed"
            path.write_text(code.replace(mistake.right, mistake.wrong))
        # Coverage must not measure the copy: its report would not find the copy's files.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        yield environment | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}


def search(mistake: Mistake | None, most: int = MOST) -> str:
    """Return the first seed that finds the mistake, and the broken rule, or "" if the first *most* seeds do not find
    it.
    """
    with planted(mistake) as environment:
        command = [sys.executable, str(Path(__file__).with_name("lives.py")), "0", str(most)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=environment["PYTHONPATH"])
        assert done.stderr == "", done.stderr
        return done.stdout.strip()


if __name__ == "__main__":
    for name, mistake in MISTAKES.items():
        print(f"{name}: {search(mistake) or 'not found'}", flush=True)
