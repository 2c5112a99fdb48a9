"""Recorders wait the same way in memory and on sockets, and their failures show the state of the connection."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import gevent
import pytest

from ngi_gevent import ConnectionFailed, adapters, testing
from ngi_gevent.core import clock
from ngi_gevent.testing import contract


class Echo:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data.upper())
        if data.endswith(b"bye"):
            connection.close()


def test_a_recorder_waits_for_every_event_that_it_records(stage):
    client = testing.Recorder()
    stage.listen(Echo).connect(client)
    client.wait_connected().write(b"hello ")
    client.expect(b"HELLO ")
    client.connection.write(b"good")
    client.connection.write(b"bye")
    client.expect(b"GOOD")
    client.expect(b"BYE")
    assert client.wait_closed() == "end of input"
    client.wait_until(lambda: client.gone)
    assert client.data == b"HELLO GOODBYE"


def test_a_recorder_is_a_server_for_one_client(stage):
    client, server = testing.Recorder(), testing.Recorder()
    listener = stage.listen(server.connected)
    listener.connect(client)
    server.wait_connected().write(b"who is there?")
    client.expect(b"who is there?")
    client.connection.close()
    assert server.wait_closed() == "end of input"
    assert client.wait_closed() is None


def test_a_recorder_of_an_adapter_can_wait(stage):
    class Server:
        def __init__(self, connection):
            adapters.Lines(connection).set_handler(self)

        def handle_input(self, connection, data):
            connection.write(data + b"!\n")

    client = testing.Recorder()
    stage.listen(Server).connect(adapted := testing.Recorder())
    adapters.Lines(adapted.wait_connected()).set_handler(client)
    adapted.connection.write(b"hello\n")
    client.expect(b"hello!")
    client.connection.close()
    assert client.wait_closed() is None


def test_a_failed_connection_ends_each_wait(stage):
    client = testing.Recorder()
    listener = stage.listen()
    listener.close()
    stage.implementation.connect(listener.address, client)
    with pytest.raises(ConnectionFailed):
        client.wait_connected()
    assert client.wait_closed() is None
    with pytest.raises(AssertionError, match="expected b'x' next; got b'', the connection attempt failed: "):
        client.expect(b"x")


def test_unexpected_input_fails_at_once_on_every_implementation(stage):
    client = testing.Recorder()
    stage.listen(Echo).connect(client)
    client.wait_connected().write(b"hello")
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"expected b'HELP' next; got b'HELLO', the connection is open"):
        client.expect(b"HELP", timeout=30)
    with pytest.raises(AssertionError, match=r"expected b'HELP ME' next; got b'HELLO', the connection is open"):
        client.expect(b"HELP ME", timeout=30)
    client.connection.write(b"bye")
    with pytest.raises(AssertionError, match=r"got b'HELLOBYE', the connection ended: end of input"):
        client.expect(b"HELLOBYEBYE", timeout=30)
    assert time.monotonic() - began < 20
    client.expect(b"HELLOBYE")


@pytest.mark.parametrize("data", ["text", 5, [b"x"]])
def test_expected_input_must_be_bytes(data):
    with pytest.raises(TypeError, match="input must be bytes; got"):
        testing.Recorder().expect(data)


@pytest.mark.parametrize(
    ("timeout", "error"), [(float("nan"), ValueError), (-1, ValueError), (True, TypeError), ("1", TypeError)]
)
def test_a_wrong_timeout_is_refused(timeout, error):
    with pytest.raises(error, match="timeout"):
        testing.Recorder().wait_until(lambda: True, timeout)


@pytest.mark.parametrize("timeout", [None, float("inf")])
def test_a_recorder_can_wait_without_a_timeout(stage, timeout):
    client = testing.Recorder()
    stage.implementation.connect(stage.listen(Echo).address, client)
    client.wait_connected(timeout)
    client.connection.write(b"hello")
    client.expect(b"HELLO", timeout)


def test_expected_input_can_be_any_kind_of_bytes():
    connection = testing.Connection(client := testing.Recorder())
    connection.write(b"abc")
    client.expect(bytearray(b"ab"))
    client.expect(memoryview(b"c"))


@pytest.mark.parametrize("kind", [contract.MemoryStage, contract.SocketStage])
def test_a_failure_of_a_stage_names_its_condition(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(contract.SocketStage, "patience", 0.01)
    stage = kind(tmp_path)
    with pytest.raises(AssertionError, match=r"happen.*: stage.until\(lambda: stage.served\) \(.*test_recorder.py:\d+"):
        stage.until(lambda: stage.served)


@pytest.mark.parametrize("forget", [lambda connection: None, adapters.Lines], ids=["nothing", "an adapter"])
def test_a_failure_mentions_a_missing_handler(stage, forget):
    client = testing.Recorder()
    stage.listen(forget).connect(client)
    client.wait_connected().write(b"hello")
    with pytest.raises(AssertionError, match=r"^expected .*, but (perhaps )?the server set no handler \(set_handler\)"):
        client.expect(b"HELLO", timeout=0.01)
    client.connection.abort()
    client.wait_until(lambda: client.gone)


def test_a_failure_shows_the_state_of_the_connection():
    connection = testing.Connection(peer := testing.Recorder(), "here", "there")
    connection.write(b"hello")
    peer.connection.write(b"four")
    with pytest.raises(AssertionError) as caught:
        peer.expect(b"HELLO")
    assert str(caught.value) == (
        "expected b'HELLO' next; got b'hello', the connection is open: "
        "<Connection 'there' to 'here', open, handler: Recorder, bytes pending: 4>"
    )


@pytest.mark.parametrize("hub", ["None", "gevent.get_hub()"])
def test_a_wait_ends_with_its_timeout_if_nothing_else_can_end_it(hub):
    """The test uses a separate program, since other tests can have started threads."""
    program = f"""
        import gevent, time
        from ngi_gevent import testing
        {hub}
        began = time.monotonic()
        try:
            testing.Recorder().wait_connected(0.05)
        except AssertionError as error:
            print(time.monotonic() - began >= 0.05, error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30
    )
    assert result.stdout == (
        "True expected a connection, but it did not happen in 0.05 seconds; got b'', not connected\n"
    )


def test_in_memory_a_wait_ends_with_its_timeout():
    """If nothing is left that can end the wait, it fails at once."""
    client = testing.Recorder()
    testing.Implementation().listener("here", Echo).connect(client)
    client.connection.write(b"hel")
    no_time = r" \(in memory, idle_timeout and max_lifetime never expire; use test_close, or a simulation\)"
    for wait, hint in (client.wait_closed, no_time), (lambda timeout: client.expect(b"HELLO", timeout), ""):
        with pytest.raises(AssertionError, match=rf"nothing is left that can make it happen{hint}; got b'HEL', the"):
            wait(timeout=0.01)
        busy = gevent.spawn(gevent.sleep, 5)
        with pytest.raises(AssertionError, match=r"it did not happen in 0.01 seconds; got b'HEL', the connection is o"):
            wait(timeout=0.01)
        busy.kill()


def test_a_wait_that_takes_too_long_fails(simulated):
    client = testing.Recorder()
    simulated.listen(Echo).connect(client)
    client.wait_connected()
    with pytest.raises(
        AssertionError,
        match=r"expected b'x' next, but perhaps the server .*: it did not happen in 1000 seconds; got b''",
    ):
        client.expect(b"x", timeout=1000)
    assert clock.now() == pytest.approx(1000, abs=0.01)


def test_greenlets_run_during_a_wait_in_memory():
    connection = testing.Connection(client := testing.Recorder())
    gevent.spawn(connection.write, b"later")
    client.expect(b"later")


def test_a_wait_in_a_callback_fails_with_the_cause():
    failures = []

    class Impatient(testing.Recorder):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            try:
                self.expect(b"more")
            except AssertionError as error:
                failures.append(str(error))

    testing.Connection(Impatient()).write(b"mo")
    assert len(failures) == 1
    assert "a callback cannot wait for its own connection" in failures[0]


def test_a_recorder_on_a_connection_of_the_application_says_what_it_expected():
    class Connection:
        def set_handler(self, handler):
            self.handler = handler

        def when_closed(self, callback):
            pass

    recorder = testing.Recorder(Connection())
    with pytest.raises(AssertionError, match=r"^expected b'x' next, but perhaps the server set no handler"):
        recorder.expect(b"x", timeout=0.001)
