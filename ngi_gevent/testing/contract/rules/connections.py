"""Rules for connections: their addresses and listener, and what works while they are closing or closed."""

from __future__ import annotations

import os
import sys

import pytest

from ngi_gevent import ConnectionClosed, adapters
from ngi_gevent.proxy_protocol import header
from ngi_gevent.testing.contract.rules.common import MUCH, Echo, Failure, tracebacks
from ngi_gevent.testing.contract.witness import Witness

# Rule 13: addresses.


def test_addresses_are_available_and_outlive_the_connection(stage):
    client, served = stage.talk()
    listener = stage.listeners[0]
    assert client.connection.peer_address == listener.address
    assert served.connection.local_address == listener.address
    assert served.connection.peer_address == client.connection.local_address
    peer_address = served.connection.peer_address
    client.connection.close()
    stage.until(lambda: served.gone and client.gone)
    assert (served.connection.peer_address, served.connection.local_address) == (peer_address, listener.address)


def test_a_server_connection_has_its_listener(stage):
    client, served = stage.talk()
    assert served.connection.control is stage.listeners[0]
    assert client.connection.control is None


def test_the_kernel_names_the_peer_process_of_a_unix_socket(stage):
    client, served = stage.talk()
    connections = [client.connection, served.connection, adapters.Lines(served.connection)]
    is_known = sys.platform == "linux" and isinstance(stage.listeners[0].address, (str, bytes))
    here = (os.getpid(), os.getuid(), os.getgid()) if is_known else None
    assert [connection.peer_credentials for connection in connections] == [here] * 3
    client.connection.close()
    stage.until(lambda: served.gone and client.gone)
    assert [connection.peer_credentials for connection in connections] == [here] * 3


# The PROXY protocol.

EVERYWHERE = ["0.0.0.0/0", "::/0", "unix"]
CLIENT, FRONT = ("192.0.2.1", 4711), ("192.0.2.9", 443)


def through_proxy(stage, data):
    """Return the witnesses of a client that sends the PROXY header *data*, and of its server."""
    listener = stage.listen(Echo, proxy_protocol=EVERYWHERE)
    client = Witness(stage)
    stage.implementation.connect(listener.address, client, proxy_header=data)
    stage.until(lambda: stage.served)
    return client, stage.served[0]


@pytest.mark.parametrize("version", [1, 2])
def test_behind_a_proxy_the_peer_is_the_client_of_the_proxy(stage, version):
    client, served = through_proxy(stage, header(CLIENT, FRONT, version=version))
    connection = served.connection
    assert (connection.peer_address, connection.local_address) == (CLIENT, stage.listeners[0].address)
    proxy = connection.proxy_address
    assert proxy == client.connection.local_address
    assert adapters.Lines(adapters.Base(connection)).proxy_address == proxy
    assert client.connection.proxy_address is None
    client.connection.write(b"hello")
    stage.until(lambda: client.data == b"HELLO")
    assert served.data == b"hello"
    client.connection.close()
    stage.until(lambda: served.gone)
    assert (connection.peer_address, connection.proxy_address) == (CLIENT, proxy)


@pytest.mark.parametrize("version", [1, 2])
def test_a_header_that_names_no_client_leaves_the_address_of_the_proxy(stage, version):
    client, served = through_proxy(stage, header(None, version=version))
    assert served.connection.peer_address == served.connection.proxy_address == client.connection.local_address


def test_impossible_options_of_the_proxy_protocol_are_refused(stage):
    for networks, error in ("10.0.0.0/8", TypeError), ([1], TypeError), ([], ValueError), (["10.0.0.1/8"], ValueError):
        with pytest.raises(error, match="proxy_protocol"):
            stage.listen(proxy_protocol=networks)
    listener = stage.listen()
    for data, error in ("PROXY UNKNOWN\r\n", TypeError), (b"PROXY", ValueError), (b"hello", ValueError):
        with pytest.raises(error, match="proxy_header"):
            stage.implementation.connect(listener.address, Witness(stage), proxy_header=data)


# The application's own state.


def test_data_belongs_to_the_application_and_outlives_the_connection(stage):
    client, served = stage.talk()
    assert served.connection.data is client.connection.data is None
    adapters.Lines(adapters.Base(served.connection)).data = "Ann"
    assert [connection.data for connection in stage.listeners[0].connections()] == ["Ann"]
    assert adapters.Sized(served.connection).data == "Ann"
    assert client.connection.data is None
    client.connection.close()
    stage.until(lambda: served.gone and client.gone)
    served.connection.data += ", who left"
    assert served.connection.data == "Ann, who left"


# States.


def test_a_closing_and_a_closed_connection_refuse_writes_and_ignore_close(stage):
    peer = stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    assert connection
    assert bool(connection) is True
    connection.write(b"x" * MUCH)
    connection.close()
    for _ in "closing", "closed":
        assert bool(connection) is False
        for refused in lambda: connection.write(b"x"), lambda: connection.writelines([b"x"]):
            with pytest.raises(ConnectionClosed) as caught:
                refused()
            assert isinstance(caught.value, ValueError)
        with pytest.raises(TypeError):
            connection.write("text")
        connection.close()
        peer.read()
        stage.until(lambda: peer.ended)
    assert len(peer.received) == MUCH
    connection.abort()


def test_when_closed_reports_every_end(stage):
    client, served = stage.talk()
    told = []
    served.connection.when_closed(lambda: (told.append("served"), stage.happened()))
    client.connection.when_closed(lambda: (told.append("client"), stage.happened()))
    client.connection.close()
    stage.until(lambda: len(told) == 2)
    client.connection.when_closed(lambda: told.append("later"))
    assert told[-1] == "later"
    with pytest.raises(TypeError):
        client.connection.when_closed(None)


def test_a_raising_when_closed_does_not_affect_others(stage, caplog):
    def fail():
        raise error

    error = Failure("in when_closed")
    clients = [stage.client(stage.listen(Echo))]
    clients += [stage.client(stage.listeners[0]) for _ in range(5)]
    stage.until(lambda: len(stage.served) == 6)
    told = []
    clients[0].connection.when_closed(fail)
    clients[0].connection.when_closed(lambda: (told.append(1), stage.happened()))
    for client in clients:
        client.connection.write(b"all in one turn")
    clients[0].connection.close()
    stage.until(lambda: all(client.data for client in clients[1:]) and told)
    clients[0].connection.when_closed(fail)
    stage.client(stage.listeners[0])  # at most as long as the log entry takes
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 2


def test_a_connection_shows_whether_it_is_secure(stage):
    client, served = stage.talk()
    connections = [client.connection, served.connection, adapters.Lines(served.connection)]
    assert [connection.ssl_object is not None for connection in connections] == [stage.name == "tls"] * 3


__all__ = [name for name in dir() if name.startswith("test_")]
