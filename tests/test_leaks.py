"""Objects that are left open: failures name each of them, and where it was created."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys

import gevent
import pytest
from gevent.event import Event

import ngi_gevent
from ngi_gevent import adapters, blocking, generator, testing
from ngi_gevent.relay import relay
from ngi_gevent.testing import contract, leaks

KINDS = [testing.Implementation, ngi_gevent.Implementation]


@pytest.fixture(params=KINDS, ids=["memory", "network"])
def kind(request):
    gevent.get_hub()
    return request.param


@pytest.fixture
def little_grace(monkeypatch):
    """A short grace period, for tests that leave something open on purpose."""
    monkeypatch.setattr(leaks, "GRACE", 0.03)


def here():
    """Return the line after the call, in the format of failures."""
    frame = sys._getframe(1)
    return f"{frame.f_code.co_filename}:{frame.f_lineno + 1}"


def test_nothing_is_left_after_everything_has_ended(kind):
    with testing.nothing_left(kind()) as implementation:
        client = testing.Recorder()
        listener = implementation.listener(None, testing.Recorder)
        listener.connect(client)
        datagrams = implementation.udp_listener(None, lambda address, data: None)
        client.wait_connected().write(b"x")
        datagrams.send(datagrams.address, b"x")
        gevent.spawn(gevent.sleep, 0.01)
        listener.close()
        datagrams.close()


def test_a_closed_implementation_leaves_nothing(kind):
    with testing.nothing_left(kind()) as implementation:
        client = testing.Recorder()
        implementation.listener(None, testing.Recorder).connect(client)
        client.wait_connected()
        implementation.udp_listener(None, lambda address, data: None)
        implementation.close()


@pytest.mark.usefixtures("little_grace")
def test_an_open_connection_is_named_with_the_line_that_created_it(kind):
    client = testing.Recorder()
    with pytest.raises(AssertionError) as caught, testing.nothing_left(kind()) as implementation:
        listened = here()
        listener = implementation.listener(None, testing.Recorder)
        connected = here()
        implementation.connect(listener.address, client)
        client.wait_connected()
        listener.close(lambda listener: None)
    lines = str(caught.value).split("\n")
    assert lines[0] == "left over:"
    assert sorted(line.split(", ")[-1] for line in lines[1:]) == [
        f"accepted by a listener made at {listened}",
        f"connected at {connected}",
    ]
    assert all("Connection (" in line for line in lines[1:])
    client.wait_until(lambda: client.gone)


@pytest.mark.usefixtures("little_grace")
def test_an_open_connection_is_named_with_the_handler_that_the_program_passed(kind):
    class Chat:
        def __init__(self, connection):
            adapters.Lines(adapters.Base(connection)).set_handler(self)

        def handle_input(self, connection, data): ...

    @generator.handler(connection_adapter=adapters.Sized)
    def ask(connection):
        yield

    @blocking.server
    def read(input, output):
        input.read()

    with pytest.raises(AssertionError) as caught, testing.nothing_left(kind()) as implementation:
        listeners = [implementation.listener(None, Chat), implementation.listener(None, read)]
        clients = [blocking.connect(listener.address, implementation.connect) for listener in [*listeners, *listeners]]
        ask(clients[0])
        files = blocking.open(clients[1])
        relay(*clients[2:])
        gevent.sleep(0.01)
    handlers = [line.partition("handler: ")[2].partition(",")[0] for line in str(caught.value).split("\n")]
    assert sorted(name.rpartition(".<locals>.")[2] for name in handlers if name) == [
        *("Chat", "Chat", "ask", "blocking.open", "read", "read", "relay", "relay")
    ]
    assert files


@pytest.mark.usefixtures("little_grace")
def test_a_listener_that_fails_is_not_left_open(ngi_network):
    listener = ngi_network.listener(None, testing.Recorder)
    with pytest.raises(OSError, match="in use"):
        ngi_network.listener(listener.address, testing.Recorder)
    listener.close()


def test_open_listeners_are_named(kind):
    with pytest.raises(AssertionError) as caught, testing.nothing_left(kind()) as implementation:
        first = here()
        listener = implementation.listener(None, testing.Recorder)
        second = here()
        datagrams = implementation.udp_listener(None, print)
    assert str(caught.value).split("\n")[1:] == [
        f"  <{type(listener.listener).__name__} on {listener.address!r}, accepting, connections: 0>, made at {first}",
        f"  <{type(datagrams.listener).__name__} on {datagrams.address!r}, open>, made at {second}",
    ]


@pytest.fixture
def full(tmp_path):
    """The path of a Unix socket with a full queue, so that connecting clients must wait."""
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(tmp_path / "full"))
        listening.listen(0)
        error = 0
        while not error:
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            error = client.connect_ex(listening.getsockname())
        assert error == errno.EAGAIN
        yield listening.getsockname()


def test_a_pending_connection_attempt_is_named(monkeypatch, full):
    monkeypatch.setattr(leaks, "GRACE", 0)
    client = testing.Recorder()
    with pytest.raises(AssertionError) as caught, testing.nothing_left(ngi_gevent.Implementation()) as implementation:
        begun = here()
        implementation.connect(full, client)
    assert f"a connection attempt for {client!r}, begun at {begun}" in str(caught.value)
    assert client.failed is None or client.failed == "stopped"
    client.wait_until(lambda: client.failed)


@pytest.mark.usefixtures("little_grace")
def test_a_greenlet_is_named_with_the_line_at_which_it_waits(kind):
    event = Event()

    def wait_for_ever():
        event.wait()

    with pytest.raises(AssertionError) as caught, testing.nothing_left(kind()):
        made = here()
        gevent.spawn(wait_for_ever)
    waiting = f"{__file__}:{wait_for_ever.__code__.co_firstlineno + 1}"
    assert "wait_for_ever" in str(caught.value)
    assert str(caught.value).endswith(f"made at {made}, waiting at {waiting}")
    event.set()


@pytest.mark.usefixtures("little_grace")
def test_greenlets_are_killed_after_they_are_named(kind):
    killed = []

    def wait_for_ever():
        try:
            Event().wait()
        finally:
            killed.append(True)

    with pytest.raises(AssertionError, match="wait_for_ever"), testing.nothing_left(kind()):
        spawned = [gevent.spawn(wait_for_ever), gevent.spawn_raw(wait_for_ever)]
        gevent.sleep(0)
    assert all(one.dead for one in spawned)
    assert killed == [True, True]


def test_in_memory_there_is_no_wait_if_nothing_can_end():
    """The test runs in a separate program without other threads, which could end things.  Its hub would run forever."""
    program = """
import time
import ngi_gevent
from ngi_gevent import testing
listener = ngi_gevent.listener(None, testing.Recorder)
began = time.monotonic()
try:
    with testing.nothing_left(testing.Implementation()) as implementation:
        implementation.listener(None, testing.Recorder)
except AssertionError as error:
    print("left over" in str(error), time.monotonic() - began < 1)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert result.stdout == "True True\n", result.stderr


def test_in_memory_a_greenlet_gets_time_to_end_the_rest():
    with testing.nothing_left(testing.Implementation()) as implementation:
        gevent.spawn_later(0.05, implementation.listener(None, testing.Recorder).close)


@pytest.mark.usefixtures("little_grace")
def test_only_greenlets_of_handlers_are_found(kind):
    event = Event()
    before = gevent.spawn(event.wait)
    with pytest.raises(AssertionError) as caught, testing.nothing_left(kind()) as implementation:

        @blocking.server
        def stubborn(input, output):
            event.wait()

        client = testing.Recorder()
        listener = implementation.listener(None, stubborn)
        listener.connect(client)
        client.wait_connected()
        gevent.sleep(0.01)
        listener.close()
    assert str(caught.value).count("waiting at") == 1
    event.set()
    before.join()


@pytest.mark.usefixtures("little_grace")
def test_an_open_descriptor_is_named(kind):
    kept = []
    with pytest.raises(AssertionError) as caught, testing.nothing_left(kind()):
        kept = [socket.socket(), open(os.devnull)]  # noqa: SIM115
        kept[0].bind(("127.0.0.1", 0))
    lines = str(caught.value).split("\n")[1:]
    address = kept[0].getsockname()
    assert sorted(lines) == sorted(
        [f"  descriptor {kept[0].fileno()}, a socket on {address!r}", f"  descriptor {kept[1].fileno()}, /dev/null"]
    )
    for descriptor in kept:
        descriptor.close()


def test_a_second_handle_close_is_reported():
    class Twice(adapters.Base):
        def handle_close(self, connection, reason):
            super().handle_close(connection, reason)
            super().handle_close(connection, reason)

    stutters = contract.Adapted(testing.Implementation(), Twice)
    with pytest.raises(AssertionError) as caught, testing.nothing_left(stutters) as implementation:
        listener = implementation.listener(None, testing.Recorder)
        listener.connect(testing.Recorder())
        listener.close()
    assert "handle_close was called 2 times for <WrappingConnection over <Twice over <Connection" in str(caught.value)


@pytest.mark.usefixtures("little_grace")
def test_another_exception_is_not_replaced(kind):
    with pytest.raises(ZeroDivisionError), testing.nothing_left(kind()) as implementation:
        listener = implementation.listener(None, testing.Recorder)
        assert 1 / 0
    assert "accepting" not in repr(listener)
