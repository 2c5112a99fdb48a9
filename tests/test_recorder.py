"""Recorders wait the same way in memory and on sockets, and say at once what can not come any more."""

from __future__ import annotations

import subprocess
import sys
import time

import gevent
import pytest

from ngi_gevent import ConnectionFailed, adapters, testing
from ngi_gevent.testing import contract


class Echo:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data.upper())
        if data.endswith(b"bye"):
            connection.close()


def test_a_recorder_waits_for_all_that_it_records(stage):
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


def test_a_recorder_of_an_adapter_waits_too(stage):
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


def test_there_may_be_no_connection(stage):
    client = testing.Recorder()
    listener = stage.listen()
    listener.close()
    stage.implementation.connect(listener.address, client)
    with pytest.raises(ConnectionFailed):
        client.wait_connected()
    assert client.wait_closed() is None
    with pytest.raises(AssertionError, match="expected b'x' next, and got b'', the connect failed: "):
        client.expect(b"x")


def test_something_else_fails_at_once_on_every_implementation(stage):
    client = testing.Recorder()
    stage.listen(Echo).connect(client)
    client.wait_connected().write(b"hello")
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"expected b'HELP' next, and got b'HELLO', the connection is open"):
        client.expect(b"HELP", timeout=30)
    with pytest.raises(AssertionError, match=r"expected b'HELP ME' next, and got b'HELLO', the connection is open"):
        client.expect(b"HELP ME", timeout=30)
    client.connection.write(b"bye")
    with pytest.raises(AssertionError, match=r"and got b'HELLOBYE', the connection ended: end of input"):
        client.expect(b"HELLOBYEBYE", timeout=30)
    assert time.monotonic() - began < 20
    client.expect(b"HELLOBYE")


@pytest.mark.parametrize("data", ["text", 5, [b"x"]])
def test_only_bytes_are_expected(data):
    with pytest.raises(TypeError, match="input is bytes; got"):
        testing.Recorder().expect(data)


def test_what_is_expected_may_be_any_bytes():
    connection = testing.Connection(client := testing.Recorder())
    connection.write(b"abc")
    client.expect(bytearray(b"ab"))
    client.expect(memoryview(b"c"))


@pytest.mark.parametrize("kind", [contract.MemoryStage, contract.SocketStage])
def test_a_stage_says_what_it_has_waited_for(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(contract.stage, "PATIENCE", 0.01)
    stage = kind(tmp_path)
    with pytest.raises(AssertionError, match=r"happen.*: stage.until\(lambda: stage.served\) \(.*test_recorder.py:\d+"):
        stage.until(lambda: stage.served)


@pytest.mark.parametrize("forget", [lambda connection: None, adapters.Lines], ids=["nothing", "an adapter"])
def test_a_forgotten_handler_is_told(stage, forget):
    def serve(connection):
        forget(connection)
        served.append(connection)
        stage.happened()

    served = []
    client = testing.Recorder()
    stage.listen(serve).connect(client)
    client.wait_connected().write(b"hello")
    stage.until(lambda: served)
    with pytest.raises(AssertionError, match="is open, and the server has given it no handler"):
        client.expect(b"HELLO", timeout=0.01)


def test_a_forgotten_handler_of_a_connection_made_by_hand_is_told():
    testing.Connection(peer := testing.Recorder()).write(b"hello")
    with pytest.raises(AssertionError, match="got b'hello', the connection is open, and the other side has given it"):
        peer.expect(b"HELLO")


def test_what_can_not_come_any_more_fails_at_once_in_memory():
    implementation = testing.Implementation()
    client = testing.Recorder()
    implementation.listener("here", Echo).connect(client)
    client.connection.write(b"hel")
    for wait in client.wait_closed, lambda: client.expect(b"HELLO"):
        with pytest.raises(AssertionError, match="nothing"):
            wait()


@pytest.mark.parametrize("hub", ["None", "gevent.get_hub()"])
def test_who_waits_for_nobody_is_told_so(hub):
    """In a program of its own, since here there may be other threads, which could connect."""
    program = f"import gevent; from ngi_gevent import testing; {hub}; testing.Recorder().wait_connected()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert "AssertionError: expected a connection, and " in result.stderr
    assert "nothing could ever end this wait: all that was begun has happened, and no greenlet" in result.stderr
    assert ": got b'', not connected" in result.stderr


def test_what_takes_too_long_fails(tcp):
    client = testing.Recorder()
    tcp.listen(Echo).connect(client)
    client.wait_connected()
    with pytest.raises(AssertionError, match=r"expected b'x' next, and it did not happen in 0.01 seconds: got b''"):
        client.expect(b"x", timeout=0.01)


def test_greenlets_go_on_meanwhile_in_memory_too():
    connection = testing.Connection(client := testing.Recorder())
    gevent.spawn(connection.write, b"later")
    client.expect(b"later")


def test_waiting_in_a_callback_says_so():
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
    assert "in its own callback" in failures[0]
