"""The dispatcher: the cost and the length of a turn of the loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import gevent
import pytest
from stages import Witness

import ngi_gevent
from ngi_gevent import adapters
from ngi_gevent.sockets.dispatcher import Dispatcher, TurnTime
from ngi_gevent.testing.contract.rules.common import Echo

PACKAGE = os.path.dirname(ngi_gevent.__file__)

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


def test_on_libuv_the_first_use_names_the_loop_to_use():
    pytest.importorskip("cffi")  # gevent needs it for libuv
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


def test_a_turn_with_one_ready_connection_makes_three_calls(tcp):
    """These do not include the handler's own calls.  Most turns of a real server are like this, and each call costs
    time.
    """
    peer = tcp.peer(tcp.listen(Echo))
    peer.read()
    peer.send(b"warm up\n")
    tcp.until(lambda: peer.size == 8)
    calls = []

    def profile(frame, event, argument):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE) and not file.startswith(f"{PACKAGE}/testing/"):
            calls.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        peer.send(b"message\n")
        tcp.until(lambda: peer.size == 16)
    finally:
        sys.setprofile(None)
    # In some turns, other greenlets of the test run call this, with nothing to dispatch.
    assert [name for name in calls if name != "_dispatch"] == ["write", "send_pending"]


def plain(connection):
    return connection


def events(connection):
    """Return an adapter whose parser makes an event of each byte."""
    parts = []
    return adapters.SansIO(connection, parts.append, lambda: (b"%c" % byte for byte in parts.pop()))


@pytest.mark.parametrize(("adapt", "seconds", "most"), [(plain, 0.01, 6), (events, 0.009, 6)])
def test_a_turn_is_short_even_if_every_handler_takes_long(tcp, monkeypatch, adapt, seconds, most):
    class Long(Witness):
        def handle_input(self, connection, data):
            now[0] += seconds
            handled.extend([len(turns)] * len(data))
            super().handle_input(connection, data)

    now, handled, turns = [1.0], [], []  # handled: the turn in which each byte arrived
    monkeypatch.setattr(Dispatcher.current().time, "now", lambda: now[0])
    prepare = gevent.get_hub().loop.prepare(ref=False)
    prepare.start(turns.append, None)
    listener = tcp.listen(lambda connection: Long(tcp, adapt(connection)))
    peers = [tcp.peer(listener) for _ in range(40)]
    for rounds in 1, 2:
        for peer in peers:
            peer.send(b"xy")
        tcp.until(lambda rounds=rounds: len(handled) == 80 * rounds)
    prepare.close()
    assert max(Counter(handled[80:]).values()) <= most


def test_a_turn_is_longer_if_thousands_of_connections_are_ready():
    """In each turn, the loop reports all ready connections again, which must not take longer than serving them."""
    ready = [None] * 10_000
    loop = gevent.get_hub().loop
    few, many = TurnTime(loop, []), TurnTime(loop, ready)
    lengths = []
    for time in few, many:
        time.now = lambda: 1.0
        time.measure()
        lengths.append(round(time.ends - 1.0, 6))
        time.close()
    assert lengths == [0.005, 0.025]


def test_records_of_connections_that_a_short_turn_leaves_over_are_delivered(tcp, monkeypatch):
    class Records(adapters.Base):
        def handle_input(self, connection, data):
            self.deliver(data[start : start + 1] for start in range(len(data)))

    class Long(Witness):
        def handle_input(self, connection, data):
            # The first turn serves three connections, the next one two.  The third connection has records, but no more
            # input.
            now[0] += 0.001 if sum(handled.values()) < 6 else 0.004
            super().handle_input(connection, data)
            handled[connection.peer_address] += 1

    now, handled = [1.0], Counter()
    monkeypatch.setattr(Dispatcher.current().time, "now", lambda: now[0])
    listener = tcp.listen(lambda connection: Long(tcp, Records(connection)))
    peers = [tcp.peer(listener) for _ in range(10)]
    for peer in peers:
        peer.send(b"x" * 8)
    tcp.until(lambda: sum(handled.values()) == 80)
    assert set(handled.values()) == {8}
