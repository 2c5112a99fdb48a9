"""The dispatcher, which needs an event loop of one kind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ngi_gevent
from ngi_gevent import testing

testing.Implementation().listener(None, print)  # in memory, no loop is needed
for implementation in ngi_gevent, ngi_gevent.Threaded():
    for use, handler in (implementation.listener, print), (implementation.connect, testing.Recorder()):
        try:
            use(("127.0.0.1", 1), handler)
        except RuntimeError as error:
            print(error)
"""


def test_on_libuv_the_first_use_says_which_loop_to_use():
    pytest.importorskip("cffi")  # gevent's loop on libuv needs it
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "GEVENT_LOOP": "libuv"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    lines = program.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("ngi_gevent needs gevent's default event loop, libev; got gevent.libuv.loop; ")
