"""A headless Chromium, controlled through its DevTools protocol, for tests of examples that browsers use.

It needs Debian's ``chromium`` package, and ``websockets``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stages import PATIENCE

CHROMIUM = shutil.which("chromium")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

OPTIONS = [
    "--headless",
    "--no-sandbox",  # the sandbox does not work for root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--ignore-certificate-errors",  # the tests' certificate authority is not installed
    "--remote-debugging-port=0",
]


class Tab:
    """One page, which can run scripts."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def open(self, url: str) -> None:
        """Load *url*, and wait until the page has loaded."""
        self._call("Page.enable")
        self._call("Page.navigate", url=url)
        self._browser.wait_for("Page.loadEventFired", self._session)

    def run(self, script: str) -> Any:
        """Return the value of the expression *script*.  If the value is a promise, wait for its result."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _call(self, method: str, **parameters: Any) -> Any:
        return self._browser.call(method, self._session, **parameters)


class Browser:
    """A running Chromium."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def tab(self) -> Tab:
        """Open a new page, and return it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        return Tab(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Call *method* of the protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message if session is None else message | {"sessionId": session}))
        while (answer := self._receive()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, event: str, session: str) -> None:
        """Wait until *event* has arrived, and discard the events before it."""
        while True:
            for number, happened in enumerate(self._events):
                if happened.get("method") == event and happened.get("sessionId") == session:
                    del self._events[: number + 1]
                    return
            self._events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._socket.recv(timeout=PATIENCE))
        return answer


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Browser]:
    """Run Chromium, and keep its files in *folder*."""
    from websockets.sync.client import connect

    assert CHROMIUM is not None
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = next(line.split()[-1] for line in process.stderr if line.startswith("DevTools listening on "))
            with connect(url, max_size=None, proxy=None) as socket:
                yield Browser(socket)
        finally:
            process.kill()
