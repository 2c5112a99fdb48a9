"""TLS: handshakes that fail or never end, ends without close_notify, and peers with other libraries."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import logging
import random
import select
import shutil
import signal
import socket
import ssl
import subprocess
import time
import tracemalloc

import gevent
import gevent.ssl
import pytest
import trustme
from certificates import AUTHORITY, certificate, client_context, new_client_context, new_server_context, server_context
from gevent.event import Event
from gevent.socket import wait_read
from stages import PATIENCE, TLSSocket, Witness, needs_ipv6

import ngi_gevent
from ngi_gevent import ConnectionFailed, ConnectionTimeout, adapters, blocking, message
from ngi_gevent.core import clock, logs
from ngi_gevent.sockets import crowd, transport
from ngi_gevent.sockets import tls as tls_module
from ngi_gevent.sockets.network import Network
from ngi_gevent.sockets.transport import CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT
from ngi_gevent.testing.contract.rules.common import MUCH, Echo
from ngi_gevent.testing.contract.simulated import BlockingSocket

CONTEXTS = [ssl.SSLContext, gevent.ssl.SSLContext]


def in_thread(function, *arguments):
    """Run a function that blocks on a native thread, while this thread's greenlets continue."""
    return gevent.get_hub().threadpool.apply(function, arguments)


def dial(listener, context=None, server_hostname="localhost"):
    """Connect a client of the standard library.  It blocks, so it needs a native thread."""
    sock = socket.create_connection(listener.address[:2], timeout=PATIENCE)
    return (context or client_context()).wrap_socket(sock, server_hostname=server_hostname)


def plain(stage, listener):
    """Return a connected socket that has sent nothing."""
    sock = gevent.socket.create_connection(listener.address[:2])
    stage.peers.append(sock)
    return sock


def listen_for_tls(stage, server=None, **options):
    """Return a listener for TLS, on a stage without TLS."""
    return stage.listen(server, **{"ssl_context": server_context(), **options})


#: The options of a client of such a listener.
SECURE = {"ssl_context": client_context(), "server_hostname": "localhost"}


def stranger_of(simulated, listener):
    """Return a connected socket of the simulation that has sent nothing."""
    return simulated.peer(listener).socket


@pytest.fixture
def info(caplog):
    """The log entries of the package, from level INFO on."""
    caplog.set_level(logging.INFO, logger="ngi_gevent.connection")
    return caplog


def until(condition):
    """Wait for a condition that no event reports."""
    with gevent.Timeout(PATIENCE, AssertionError("it did not happen in time")):
        while not condition():
            gevent.sleep(0.001)


def failure_line(info):
    """Return the only log entry, which must be about a handshake."""
    records = info.records
    assert [record.levelname for record in records] == ["INFO"]
    assert records[0].name == "ngi_gevent.connection"
    line = records[0].getMessage()
    assert "TLS handshake failed" in line
    return line


# Contexts.


class Watched:
    """A wrapper of a transport that receives and sends with other calls."""

    def __init__(self, transport, receive, send):
        self._transport = transport
        self.recv, self.send = receive, send

    def sendmsg(self, pieces):
        return self.send(pieces[0], 0)

    def __getattr__(self, name):
        return getattr(self._transport, name)


@pytest.mark.parametrize("of_server", CONTEXTS)
@pytest.mark.parametrize("of_client", CONTEXTS)
def test_any_context_works(tcp, of_server, of_client):
    client = Witness(tcp)
    listener = tcp.listen(Echo, ssl_context=new_server_context(of_server))
    tcp.implementation.connect(listener.address, client, ssl_context=new_client_context(of_client))
    tcp.until(lambda: client.connection)
    client.connection.write(b"hello")
    tcp.until(lambda: client.data == b"HELLO")


@pytest.mark.parametrize("kind", CONTEXTS)
def test_a_context_can_be_chosen_by_the_requested_name(tcp, kind):
    """gevent's contexts need a private attribute in the callback's arguments.  Without it, this test fails."""

    def choose(ssl_object, name, context):
        asked.append((ssl_object, name))
        ssl_object.context = other

    asked = []
    other = new_server_context(kind)
    other.set_alpn_protocols(["other"])
    context = new_server_context(kind)
    context.sni_callback = choose
    for_client = new_client_context()
    for_client.set_alpn_protocols(["other"])
    listener = tcp.listen(ssl_context=context)
    client = Witness(tcp)
    listener.connect(client, ssl_context=for_client, server_hostname="localhost")
    tcp.until(lambda: client.connection and tcp.served)
    assert asked == [(tcp.served[0].connection.ssl_object, "localhost")]
    assert client.connection.ssl_object.selected_alpn_protocol() == "other"


def certificate_of(listener, context):
    """Return the certificate that a new client gets."""
    with in_thread(dial, listener, context) as client:
        return client.getpeercert(binary_form=True)


@pytest.mark.parametrize("kind", CONTEXTS)
def test_a_running_listener_can_get_a_new_certificate(tcp, kind):
    """The page on TLS shows this code."""
    new = kind(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost", key_type=trustme.KeyType.RSA).configure_cert(new)
    context = new_server_context(kind)
    listener = listen_for_tls(tcp, Echo, ssl_context=context)
    only_ecdsa = new_client_context()
    only_ecdsa.maximum_version = ssl.TLSVersion.TLSv1_2
    only_ecdsa.set_ciphers("ECDHE+aECDSA")
    with in_thread(dial, listener, None) as open_before:
        before = certificate_of(listener, only_ecdsa)
        context.sni_callback = lambda ssl_object, *_: setattr(ssl_object, "context", new)
        after = certificate_of(listener, None)
        assert after != before
        with pytest.raises(ssl.SSLError):
            certificate_of(listener, only_ecdsa)  # nothing of the old certificate is left
        in_thread(open_before.sendall, b"hello")
        assert in_thread(open_before.recv, 100) == b"HELLO"


def test_a_context_that_fails_to_load_a_certificate_has_lost_its_key(tcp, info, tmp_path):
    """OpenSSL does this, and therefore the page on TLS makes another context."""
    good, other = AUTHORITY.issue_cert("localhost"), AUTHORITY.issue_cert("localhost")
    mixed = tmp_path / "mixed.pem"
    mixed.write_bytes(good.private_key_pem.bytes() + other.cert_chain_pems[0].bytes())
    context = new_server_context()
    listener = listen_for_tls(tcp, Echo, ssl_context=context)
    certificate_of(listener, None)
    with pytest.raises(ssl.SSLError, match="key values mismatch"):
        context.load_cert_chain(mixed)
    with pytest.raises(ssl.SSLError):
        certificate_of(listener, None)
    tcp.until(lambda: info.records)
    assert "NO_SHARED_CIPHER" in failure_line(info)


def test_ssl_object_has_the_facts_about_tls(tcp):
    for_server, for_client = new_server_context(), new_client_context()
    for_server.verify_mode = ssl.CERT_REQUIRED
    for_server.load_verify_locations(cadata=AUTHORITY.cert_pem.bytes().decode())
    certificate("someone@example.org").configure_cert(for_client)
    for context in for_server, for_client:
        context.set_alpn_protocols(["one", "two"])
    client = Witness(tcp)
    listener = tcp.listen(ssl_context=for_server)
    tcp.implementation.connect(listener.address, client, ssl_context=for_client)
    tcp.until(lambda: client.connection and tcp.served)
    of_client = tcp.served[0].connection.ssl_object
    of_server = adapters.Base(client.connection).ssl_object
    client.connection.close()
    tcp.until(lambda: tcp.served[0].connection._lifecycle.is_gone() and client.connection._lifecycle.is_gone())
    assert of_client is tcp.served[0].connection.ssl_object
    assert of_client.getpeercert()["subjectAltName"] == (("email", "someone@example.org"),)
    assert ("DNS", "localhost") in of_server.getpeercert()["subjectAltName"]
    assert of_client.version() == of_server.version()
    assert of_client.cipher() == of_server.cipher()
    assert of_server.selected_alpn_protocol() == "one"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_are_supported(tcp, version):
    context = new_client_context()
    context.minimum_version = context.maximum_version = version
    client = Witness(tcp)
    tcp.listen(Echo, ssl_context=server_context()).connect(client, ssl_context=context, server_hostname="localhost")
    tcp.until(lambda: client.connection)
    client.connection.write(b"x" * 1_000_000)
    tcp.until(lambda: client.size == 1_000_000)
    assert client.connection.ssl_object.version() == version.name.replace("_", ".")


# Arguments.


@pytest.mark.parametrize("context", ["certificate.pem", ssl.SSLContext, True])
def test_an_object_that_is_not_a_context_is_refused(stage, context):
    with pytest.raises(TypeError, match="ssl_context"):
        stage.listen(ssl_context=context)
    with pytest.raises(TypeError, match="ssl_context"):
        stage.implementation.connect(stage.listen().address, Witness(stage), ssl_context=context)


def test_a_context_for_the_other_side_is_refused(stage):
    with pytest.raises(ValueError, match="ssl_context"):
        stage.listen(ssl_context=client_context())
    with pytest.raises(ValueError, match="ssl_context"):
        stage.implementation.connect(stage.listen().address, Witness(stage), ssl_context=server_context())


@pytest.mark.parametrize("name", [".", "x" * 100, "a..b", "a\0b"])
def test_an_invalid_server_name_is_refused(stage, name):
    address = stage.listen().address
    with pytest.raises(ValueError, match="ssl_context"):
        stage.implementation.connect(address, Witness(stage), ssl_context=client_context(), server_hostname=name)
    with pytest.raises(TypeError, match="server_hostname"):
        stage.implementation.connect(address, Witness(stage), ssl_context=client_context(), server_hostname=b"x")


def test_an_empty_name_needs_a_context_that_does_not_check_it(tcp):
    context = new_client_context()
    client = Witness(tcp)
    listener = tcp.listen(ssl_context=server_context())
    with pytest.raises(ValueError, match="check_hostname"):
        tcp.implementation.connect(listener.address, client, ssl_context=context, server_hostname="")
    context.check_hostname = False
    tcp.implementation.connect(listener.address, client, ssl_context=context, server_hostname="")
    tcp.until(lambda: client.connection and tcp.served)
    assert client.connection.ssl_object.server_hostname is None


def test_a_name_without_a_context_is_refused(tcp):
    with pytest.raises(ValueError, match="ssl_context"):
        tcp.implementation.connect(("localhost", 1), Witness(tcp), server_hostname="localhost")


def test_a_unix_socket_needs_an_explicit_server_name(tcp, tmp_path):
    listener = tcp.implementation.listener(tmp_path / "socket", tcp.server(Echo), ssl_context=server_context())
    tcp.listeners.append(listener)
    with pytest.raises(ValueError, match="check_hostname"):
        tcp.implementation.connect(listener.address, Witness(tcp), ssl_context=client_context())
    client = Witness(tcp)
    tcp.implementation.connect(listener.address, client, ssl_context=client_context(), server_hostname="localhost")
    tcp.until(lambda: client.connection)
    client.connection.write(b"hello")
    tcp.until(lambda: client.data == b"HELLO")


# Handshakes that fail on the server's side.


def test_a_context_that_raises_is_the_reason_of_a_failed_attempt(tcp):
    class Context(ssl.SSLContext):
        made = 0

        def wrap_bio(self, *arguments, **options):
            self.made += 1
            if self.made > 1:  # connect makes the first object itself, as a check
                raise MemoryError
            return super().wrap_bio(*arguments, **options)

    listener = tcp.listen()
    client = Witness(tcp)
    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    tcp.implementation.connect(listener.address, client, ssl_context=context, server_hostname="localhost")
    tcp.until(lambda: client.failed)
    assert isinstance(client.failed, MemoryError)
    tcp.until(lambda: tcp.served and tcp.served[0].closed)
    listener.close()
    tcp.implementation.wait(PATIENCE)


def test_silent_clients_do_not_delay_others(tls, info):
    listener = tls.listen(Echo)
    for _ in range(50):
        plain(tls, listener)
    until(lambda: len(listener._connections) == 50)
    began = time.monotonic()
    for _ in range(5):
        client = tls.client(listener)
        client.connection.write(b"hello")
        tls.until(lambda client=client: client.data == b"HELLO")
    assert time.monotonic() - began < 5
    assert len(list(listener.connections())) == len(tls.served) == 5
    assert info.records == []


def test_a_handshake_must_be_complete_before_the_timeout(simulated, info):
    listener = listen_for_tls(simulated)
    stranger = stranger_of(simulated, listener)
    assert stranger.recv(100) == b""
    assert clock.now() == pytest.approx(HANDSHAKE_TIMEOUT, abs=0.01)
    until(lambda: not listener._connections)
    assert repr(stranger._socket.getsockname()) in failure_line(info)
    assert "10.0 seconds" in failure_line(info)
    assert simulated.served == []


def test_failed_handshakes_do_not_fill_the_log(tls, info, monkeypatch):
    """Each listener has its own count, so one does not hide another."""

    def fail(listener, times):
        for _ in range(times):
            stranger = plain(tls, listener)
            stranger.sendall(b"no TLS at all")
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(1000):
                    pass
            stranger.close()
            until(lambda: not listener._connections)

    noisy, quiet = tls.listen(), tls.listen()
    fail(noisy, 25)
    assert len(info.records) == crowd.MOST_FAILED == 10
    fail(quiet, 1)
    assert len(info.records) == 11
    later = clock.now() + logs.RATE_PERIOD
    monkeypatch.setattr(clock, "now", lambda: later)
    fail(noisy, 2)
    lines = [record.getMessage() for record in info.records]
    assert all("the TLS handshake failed: " in line for line in lines)
    assert [line.partition("; ")[2] for line in lines] == [""] * 11 + ["15 more since the last such entry", ""]


def test_single_bytes_do_not_prolong_the_timeout_of_a_handshake(simulated, info):
    stranger = stranger_of(simulated, listen_for_tls(simulated))
    ended = gevent.spawn(stranger.recv, 100)
    for byte in client_hello():
        if info.records:
            break
        stranger.sendall(bytes([byte]))
        gevent.sleep(0.9)
    ended.join()
    assert clock.now() == pytest.approx(HANDSHAKE_TIMEOUT, abs=1)
    assert "10.0 seconds" in failure_line(info)


STALL = HANDSHAKE_TIMEOUT + 1


def test_no_handshake_times_out_because_of_a_stall(simulated, info):
    """After the clients have begun their handshakes, the whole process stands still for longer than the timeout."""
    listener = listen_for_tls(simulated, Echo)
    clients = [stranger_of(simulated, listener) for _ in range(10)]
    until(lambda: len(listener._connections) == 10)
    secured = [TLSSocket(client, handshake=False) for client in clients]
    simulated.simulation.compute(STALL)
    gevent.joinall([gevent.spawn(client.shake_hands) for client in secured], raise_error=True)
    for client in secured:
        client.sendall(b"x")
    simulated.until(lambda: len(simulated.served) == 10 and all(served.data for served in simulated.served))
    assert info.records == []


def test_input_that_is_received_late_does_not_count_as_late(simulated, info):
    """Handlers compute before the input of a handshake is received, in either order.

    No more input has arrived when the timeout is due, since the client waits for an answer.
    """

    class Computing(Echo):
        def handle_input(self, connection, data):
            simulated.simulation.compute(STALL)

    listener = listen_for_tls(simulated, Computing)
    others = [Witness(simulated) for _ in range(2)]
    for other in others:
        simulated.implementation.connect(listener.address, other, **SECURE)
    simulated.until(lambda: len(simulated.served) == 2)
    sock = stranger_of(simulated, listener)
    until(lambda: len(listener._connections) == 3)
    for connection in [other.connection for other in others]:
        connection.write(b"x")
        connection._output.send_pending()
        if connection is others[0].connection:
            client = TLSSocket(sock, handshake=False)
    gevent.sleep(HANDSHAKE_TIMEOUT - 1)
    client.shake_hands()
    simulated.until(lambda: len(simulated.served) == 3)
    assert info.records == []


def test_extra_time_after_a_stall_ends_with_the_handshake(simulated, info):
    listener = listen_for_tls(simulated, Echo)
    sock = stranger_of(simulated, listener)
    until(lambda: listener._connections)
    client = TLSSocket(sock, handshake=False)
    simulated.simulation.compute(STALL)
    client.shake_hands()
    gevent.sleep(100)
    client.sendall(b"hello")
    assert client.recv(100) == b"HELLO"
    assert info.records == []


def test_a_handshake_gets_no_extra_time_without_a_stall(simulated, info):
    stranger = stranger_of(simulated, listen_for_tls(simulated))
    stranger.sendall(client_hello()[:1])
    assert stranger.recv(100) == b""
    assert "10.0 seconds" in failure_line(info)
    assert clock.now() == pytest.approx(HANDSHAKE_TIMEOUT, abs=0.01)


def test_a_handshake_that_is_stopped_after_its_timeout_is_not_logged(simulated, info):
    listener = listen_for_tls(simulated)
    stranger_of(simulated, listener)
    until(lambda: listener._connections)
    gevent.spawn(simulated.simulation.compute, STALL)
    gevent.sleep(0.001)  # the sleep ends in the same turn as the handshake's timeout, and before it
    listener.close()
    until(lambda: not listener._connections)
    assert info.records == []


def test_a_stall_prolongs_a_handshake_only_once(simulated, info):
    stranger = stranger_of(simulated, listen_for_tls(simulated))
    gevent.sleep(1)
    for byte in client_hello():
        stranger.sendall(bytes([byte]))
        simulated.simulation.compute(STALL)
        gevent.sleep(0.001)
        if info.records:
            break
    assert clock.now() == pytest.approx(1 + 2 * STALL, abs=0.01)
    assert "seconds" in failure_line(info)


def test_handshakes_can_take_forever_if_configured(tls):
    listener = tls.listen(Echo, handshake_timeout=None)
    plain(tls, listener)
    until(lambda: listener._connections)
    assert tls.client(listener).connection


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.0\r\n\r\n", b"SSH-2.0-x\r\n", b"\0" * 100, b"\x16\x03\x01\xff\xff" * 50]
)
def test_a_client_without_tls_is_one_log_entry_at_level_info(tls, info, words):
    listener = tls.listen(Echo)
    client = tls.client(listener)
    stranger = plain(tls, listener)
    stranger.sendall(words)
    stranger.shutdown(socket.SHUT_WR)
    with gevent.Timeout(PATIENCE):
        while stranger.recv(1000):
            pass
    until(lambda: len(listener._connections) == 1)
    assert repr(stranger.getsockname()) in failure_line(info)
    assert len(tls.served) == 1
    client.connection.write(b"still there")
    tls.until(lambda: client.data == b"STILL THERE")


def test_a_client_without_tls_that_waits_for_an_answer_receives_the_end(tls, info):
    listener = tls.listen()
    stranger = plain(tls, listener)
    stranger.sendall(b"HELO there\r\n")
    with gevent.Timeout(PATIENCE):
        while stranger.recv(1000):
            pass
    stranger.close()
    until(lambda: not listener._connections)
    failure_line(info)


def test_a_message_of_a_context_is_escaped_in_the_log(tls, info):
    """The context can be the application's, with any text in its error messages."""

    class Refusing(ssl.SSLObject):
        def do_handshake(self):
            raise ssl.SSLError(1, "a certificate of\n\x1b[31mme \u202e")

    context = new_server_context()
    context.sslobject_class = Refusing
    stranger = plain(tls, tls.listen(ssl_context=context))
    assert stranger.recv(100) == b""
    until(lambda: info.records)
    assert failure_line(info).isprintable()
    assert failure_line(info).isascii()
    stranger.close()


def test_an_error_of_sending_ends_the_handshake(tls, info):
    """Sending can fail while receiving does not, for example if a host becomes unreachable."""

    def unreachable(data, flags):
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    listener = tls.listen(handshake_timeout=None)
    stranger = plain(tls, listener)
    until(lambda: listener._connections)
    (connection,) = listener._connections
    connection._transport._plain.send = unreachable
    stranger.sendall(client_hello())
    until(lambda: not listener._connections)
    assert "No route to host" in failure_line(info)


@pytest.mark.parametrize("said", [0, 1, 50])
@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_client_that_disconnects_during_the_handshake_is_logged(tls, info, said, end):
    listener = tls.listen()
    stranger = plain(tls, listener)
    stranger.sendall(client_hello()[:said])
    until(lambda: listener._connections)
    if end == "reset":
        Network().reset_on_close(stranger)
    stranger.close()
    until(lambda: not listener._connections)
    failure_line(info)
    assert tls.served == []


def listen_for_certificates(stage):
    """Return a listener that requires a certificate from each client."""
    context = new_server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=AUTHORITY.cert_pem.bytes().decode())
    return stage.listen(ssl_context=context)


def test_a_client_that_sends_after_its_failed_handshake_receives_the_alert(tcp):
    """The client's input is discarded, like a closing connection's, although nothing can decrypt it."""
    listener = listen_for_certificates(tcp)
    client = TLSSocket(plain(tcp, listener))
    for _ in range(5):
        client.sendall(b"x" * 20_000)
        gevent.sleep(0.001)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        client.recv(100)
    client.close()
    until(lambda: not listener._connections)


def test_a_client_without_the_required_certificate_receives_the_alert(tcp, info):
    listener = listen_for_certificates(tcp)

    def ask():
        with dial(listener) as client:
            client.sendall(b"x" * 100_000)
            client.recv(100)

    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        in_thread(ask)
    until(lambda: not listener._connections)
    assert "did not return a certificate" in failure_line(info)
    assert tcp.served == []


def test_closing_the_listener_ends_handshakes(tls, info):
    info.set_level(logging.DEBUG, logger="ngi_gevent.connection")
    listener = tls.listen()
    stranger = plain(tls, listener)
    until(lambda: listener._connections)
    assert list(listener.connections()) == []
    listener.close()
    assert stranger.recv(100) == b""
    tls.implementation.wait(PATIENCE)
    (record,) = info.records
    assert record.levelname == "DEBUG"
    assert record.getMessage().endswith(": stopped during the handshake")
    assert listener.metrics().failed_handshakes == 0


def test_closing_the_listener_does_not_count_as_an_invalid_proxy_header(tcp, info):
    listener = tcp.listen(proxy_protocol=["0.0.0.0/0", "::/0"], ssl_context=server_context())
    stranger = plain(tcp, listener)
    until(lambda: listener._connections)
    listener.close()
    assert stranger.recv(100) == b""
    tcp.implementation.wait(PATIENCE)
    assert info.records == []
    assert listener.metrics().failed_handshakes == 0


def test_close_wait_waits_for_a_handshake_but_does_not_count_it(tls):
    listener = tls.listen(Echo)
    plain(tls, listener)
    until(lambda: listener._connections)
    assert listener.close_wait(0.05) == 0
    tls.implementation.wait(PATIENCE)


def test_a_client_that_completes_its_handshake_during_close_wait_is_served(tls):
    listener = tls.listen(Echo)
    sock = plain(tls, listener)
    until(lambda: listener._connections)
    waited = gevent.spawn(listener.close_wait, PATIENCE)
    gevent.sleep(0)
    client = TLSSocket(sock)
    client.sendall(b"hello")
    assert client.recv(100) == b"HELLO"
    client.close()
    assert waited.get(timeout=PATIENCE) == 0


def test_a_handshake_whose_greenlet_is_killed_leaves_nothing(tls, caplog):
    listener = tls.listen()
    plain(tls, listener)
    until(lambda: listener._connections)
    (connection,) = listener._connections
    gevent.kill(connection.resume.__self__)
    until(lambda: not listener._connections)
    assert tls.served == []


# Handshakes that fail on the client's side.


def failed(stage, address, **options):
    client = Witness(stage)
    stage.implementation.connect(address, client, **options)
    stage.until(lambda: client.failed is not None or client.connection)
    assert client.connection is None
    return client.failed


def test_an_untrusted_certificate_is_the_reason(tls, info):
    listener = tls.listen()
    reason = failed(tls, listener.address, ssl_context=ssl.create_default_context())
    assert isinstance(reason, ssl.SSLCertVerificationError)
    until(lambda: not listener._connections)
    assert "unknown ca" in failure_line(info)
    assert tls.served == []


def test_a_certificate_for_another_name_is_the_reason(tls, info):
    reason = failed(tls, tls.listen().address, server_hostname="example.org")
    assert isinstance(reason, ssl.SSLCertVerificationError)
    assert "example.org" in str(reason)


def test_the_default_server_hostname_is_the_host_of_the_address(tls):
    client = Witness(tls)
    tls.implementation.connect(tls.listen().address, client, server_hostname=None)
    tls.until(lambda: client.connection)
    assert client.connection.ssl_object.server_hostname == "127.0.0.1"


class Resolver:
    """A resolver that finds each name at the loopback address."""

    def getaddrinfo(self, host, port, *arguments):
        return socket.getaddrinfo("127.0.0.1", port, *arguments)


@pytest.mark.parametrize(
    ("host", "name"), [("localhost.", "localhost"), pytest.param("::1%1", "::1", marks=needs_ipv6)]
)
@pytest.mark.parametrize("given", ["in the address", "as server_hostname"])
def test_a_server_hostname_loses_its_trailing_dot_or_scope(tls, monkeypatch, host, name, given):
    monkeypatch.setattr(gevent.get_hub(), "resolver", Resolver())
    listener = tls.implementation.listener(("::1" if name == "::1" else "127.0.0.1", 0), tls.server())
    tls.listeners.append(listener)
    address = (host, listener.address[1]) if given == "in the address" else listener.address
    client = Witness(tls)
    tls.implementation.connect(address, client, server_hostname=None if given == "in the address" else host)
    tls.until(lambda: client.connection or client.failed)
    assert client.connection.ssl_object.server_hostname == name


def test_a_server_without_tls_is_reported(tls):
    listener = tls.listen(Echo, ssl_context=None)
    assert isinstance(failed(tls, listener.address), ssl.SSLError)
    until(lambda: not listener._connections)


def test_a_server_that_ends_the_handshake_is_reported(tls):
    def server(connection):
        connection.close()

    assert isinstance(failed(tls, tls.listen(server, ssl_context=None).address), ssl.SSLEOFError)


def test_a_server_that_resets_during_the_handshake_is_reported(tls):
    def server(connection):
        connection.abort()

    assert isinstance(failed(tls, tls.listen(server, ssl_context=None).address), ConnectionResetError)


@pytest.mark.parametrize("seconds", [CONNECT_TIMEOUT, 5])
def test_the_timeout_of_a_connection_attempt_includes_the_handshake(simulated, seconds):
    listener = simulated.listen()
    reason = failed(simulated, listener.address, **SECURE, **({} if seconds == CONNECT_TIMEOUT else {"timeout": 5}))
    assert clock.now() == pytest.approx(seconds, abs=0.05)
    assert isinstance(reason, ConnectionTimeout)
    assert f"{seconds} seconds" in str(reason)
    until(lambda: not listener._connections)


def test_failed_connect_can_block_after_a_timeout(simulated, caplog):
    class Patient(Witness):
        def failed_connect(self, reason):
            gevent.sleep(1000)
            super().failed_connect(reason)

    client = Patient(simulated)
    simulated.implementation.connect(simulated.listen().address, client, **SECURE, timeout=5)
    simulated.until(lambda: client.failed)
    assert clock.now() == pytest.approx(1005, abs=0.05)
    assert caplog.records == []


@pytest.mark.parametrize("why", ["its queue is full", "nothing passes"])
def test_a_connection_attempt_without_tls_has_the_same_timeout(simulated, why):
    server = simulated.simulation.host("server")
    if why == "nothing passes":
        simulated.simulation.partition("server", simulated.implementation)
        address = server.listener(("server", 80), Witness).address
    else:
        busy = simulated.implementation._network.make_socket(socket.AF_UNIX, socket.SOCK_STREAM)
        busy.bind("/busy")
        busy.listen(0)
        address = "/busy"
        simulated.peers.append(BlockingSocket(simulated.implementation, address))
    assert isinstance(failed(simulated, address), ConnectionTimeout)
    assert clock.now() == pytest.approx(CONNECT_TIMEOUT, abs=0.05)
    server.close()


def test_a_blocking_connect_raises_its_timeout(simulated):
    address = simulated.listen().address
    connect = functools.partial(simulated.implementation.connect, **SECURE)
    with pytest.raises(ConnectionTimeout, match="20"):
        blocking.connect(address, functools.partial(connect, timeout=20))
    assert clock.now() == pytest.approx(20, abs=0.05)
    with pytest.raises(ConnectionTimeout, match="20"):
        blocking.request(functools.partial(connect, timeout=20), address, Witness(simulated))
    with pytest.raises(ConnectionTimeout, match="30"):
        blocking.connect(address, connect, 30)
    assert clock.now() == pytest.approx(70, abs=0.05)
    until(lambda: not simulated.listeners[0]._connections)


def test_a_blocking_connect_raises_if_the_handshake_fails(tls):
    connect = functools.partial(tls.implementation.connect, server_hostname="example.org")
    with pytest.raises(ConnectionFailed) as caught:
        blocking.connect(tls.listen().address, connect)
    assert isinstance(caught.value.reason, ssl.SSLCertVerificationError)


def test_closing_the_implementation_ends_a_handshake(tls):
    client = Witness(tls)
    listener = tls.listen(ssl_context=None)
    tls.implementation.connect(listener.address, client)
    tls.until(lambda: tls.served)
    other = ngi_gevent.Implementation()
    tls.implementation.close()
    tls.until(lambda: client.failed)
    assert client.failed == "stopped"
    tls.implementation = other


def test_the_timeouts_have_their_default_values():
    assert transport.CONNECT_TIMEOUT == 60
    assert transport.HANDSHAKE_TIMEOUT == 10


# The end.


def test_an_end_without_close_notify_is_reported(tls):
    peer = tls.peer(tls.listen())
    peer.send(b"hello")
    peer._tasks.put(lambda: peer.socket._sock.shutdown(socket.SHUT_WR))
    tls.until(lambda: tls.served and tls.served[0].closed)
    served = tls.served[0]
    assert served.data == b"hello"
    assert isinstance(served.closed, ssl.SSLEOFError)
    assert "without ending TLS" in str(served.closed)


def test_a_context_can_allow_an_end_without_close_notify(tls):
    context = new_server_context()
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    peer = tls.peer(tls.listen(ssl_context=context))
    peer.send(b"hello")
    peer._tasks.put(lambda: peer.socket._sock.shutdown(socket.SHUT_WR))
    tls.until(lambda: tls.served and tls.served[0].closed)
    assert tls.served[0].trace == [b"hello", ("close", "end of input")]


def test_a_peer_that_finishes_without_close_notify_still_gets_the_answer(tls):
    class Long(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * MUCH)

    peer = tls.peer(tls.listen(Long))
    peer.send(b"?")
    peer._tasks.put(lambda: peer.socket._sock.shutdown(socket.SHUT_WR))
    peer.read_when_sent()
    tls.until(lambda: peer.ended)
    assert (peer.ended, len(peer.received)) == ("end", MUCH)


def test_an_answer_that_is_cut_short_is_not_taken_for_complete(tls):
    peer = tls.peer(tls.listen())
    tls.until(lambda: tls.served)
    tls.served[0].connection.write(b"x" * MUCH)
    gevent.sleep(0)
    tls.listeners[0].close()
    peer.read()
    tls.until(lambda: peer.ended)
    assert peer.ended == "broken"
    assert len(peer.received) < MUCH


def says_hello_and_ends(peer):
    """Send input and the end of TLS in one piece."""
    secure = peer.socket
    secure._ssl.write(b"hello")
    with pytest.raises(ssl.SSLWantReadError):
        secure._ssl.unwrap()
    secure._flush()


def test_input_and_the_end_in_one_piece_are_both_reported(tls):
    """The socket does not become readable again for the end, since the peer waits for this side's end."""
    peer = tls.peer(tls.listen(Echo))
    tls.until(lambda: tls.served)
    says_hello_and_ends(peer)
    peer.read()
    tls.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"HELLO", "end")
    assert tls.served[0].trace == [b"hello", ("close", "end of input")]


def test_input_and_the_end_in_one_piece_are_kept_while_a_handler_blocks(tls):
    class Slow(Echo):
        def handle_input(self, connection, data):
            self.release = Event()
            tls.happened()
            self.release.wait()
            super().handle_input(connection, data)

    peer = tls.peer(tls.listen(Slow))
    tls.until(lambda: tls.served)
    says_hello_and_ends(peer)
    tls.until(lambda: hasattr(tls.served[0], "release"))
    # This data comes after the end, so it is no longer decrypted.
    peer._tasks.put(lambda: peer.socket._sock.sendall(b"\x17\x03\x03\0\x05xxxxx"))
    for _ in range(10):
        gevent.sleep(0)
    tls.served[0].release.set()
    peer.read()
    tls.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"HELLO", "end")
    assert tls.served[0].trace == [b"hello", ("close", "end of input")]


def almost_shaken_hands(sock):
    """Return a client on *sock* that has yet to send the end of its handshake, and its two buffers."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))
        else:
            return client, incoming, outgoing


def test_input_in_the_last_piece_of_the_handshake_is_reported(tls):
    """The input is kept until there is a handler.  The socket does not become readable again for it."""
    connections = []
    listener = tls.listen(connections.append)
    sock = plain(tls, listener)
    client, _, outgoing = almost_shaken_hands(sock)
    client.write(b"hello")
    sock.sendall(outgoing.read())
    until(lambda: connections)
    witness = Witness(tls)
    connections[0].set_handler(witness)
    tls.until(lambda: witness.data == b"hello")


def test_garbage_after_the_handshake_ends_the_connection_with_an_alert(tls):
    peer = tls.peer(tls.listen())
    tls.until(lambda: tls.served)
    peer.socket._sock.sendall(b"\x17\x03\x03\0\x20" + b"x" * 32)
    tls.until(lambda: tls.served[0].closed)
    assert isinstance(tls.served[0].closed, ssl.SSLError)
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        peer.socket.recv(100)


def test_input_is_kept_while_the_server_blocks(tls):
    def slow(connection):
        release.wait()
        tls.server(Echo)(connection)

    release = Event()
    peer = tls.peer(tls.listen(slow))
    peer.send(b"x" * 100_000)
    peer.finish()
    peer.read()
    tls.until(lambda: peer.sent)
    release.set()
    tls.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"X" * 100_000, "end")


def test_pending_output_is_encrypted_only_a_little_ahead(tls):
    """Pending output is in memory once, and only a part of it twice."""
    tls.peer(tls.listen(output_limit=1 << 30))
    tls.until(lambda: tls.served)
    connection = tls.served[0].connection
    data = b"x" * (64 * MUCH // 24)
    tracemalloc.start()
    connection.write(data)
    for _ in range(10):
        gevent.sleep(0)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 4 * tls_module.ENCRYPT_SIZE
    assert 0 < connection._output.size <= len(data)


def test_messages_of_tls_itself_do_not_accumulate(tls):
    """Each request for new keys is answered.  A peer that reads no answers could fill the memory with them."""
    peer = tls.peer(tls.listen())
    tls.until(lambda: tls.served)
    tls.served[0].connection._transport._outgoing.write(b"x" * (tls_module.OWN_LIMIT + 1))
    peer.send(b"x")
    tls.until(lambda: tls.served[0].closed)
    assert isinstance(tls.served[0].closed, ssl.SSLError)
    assert str(tls.served[0].closed).startswith("the peer requests answers of TLS")
    assert tls.served[0].data == b"x"


# Peers with other libraries.


def test_large_transfers_in_random_pieces_are_complete_both_ways(tcp):
    """The client is the standard library's, on a thread.  It sends and receives in turns."""
    size = 4_000_000
    chance = random.Random(5)
    data = chance.randbytes(size)
    backward = chance.randbytes(size)

    class Both(Witness):
        def connected(self, connection):
            super().connected(connection)

            def pieces():
                start = 0
                while start < size:
                    piece = backward[start : start + chance.choice([1, 100, 5000, 16384, 16385, 100_000])]
                    start += len(piece)
                    yield piece

            connection.writelines(pieces())

    def talk():
        own_chance = random.Random(6)
        received = []
        sent = 0
        piece = data[:1]
        with dial(listener) as client:
            client.setblocking(False)
            while sent < size or sum(map(len, received)) < size:
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    if sent < size:
                        sent += client.send(piece)
                        piece = data[sent : sent + own_chance.choice([1, 100, 5000, 16384, 70_000])]
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    received.append(client.recv(own_chance.choice([1000, 16384, 100_000])))
                    assert received[-1]
                    continue
                select.select([client], [client] if sent < size else [], [], PATIENCE)
            client.settimeout(PATIENCE)
            client.unwrap().close()
        return b"".join(received)

    listener = tcp.listen(Both, ssl_context=server_context())
    assert in_thread(talk) == backward
    tcp.until(lambda: tcp.served[0].closed)
    assert tcp.served[0].closed == "end of input"
    assert tcp.served[0].data == data


def test_a_client_works_with_a_server_of_the_standard_library(tcp):
    def serve():
        with bound, server_context().wrap_socket(bound, server_side=True) as secure:
            connection, _ = secure.accept()
            received = b""
            while piece := connection.recv(1000):
                received += piece
                connection.sendall(piece.upper())
            connection.unwrap().close()
            return received

    bound = socket.create_server(("127.0.0.1", 0))
    bound.settimeout(PATIENCE)
    address = bound.getsockname()
    served = gevent.get_hub().threadpool.spawn(serve)
    client = Witness(tcp)
    tcp.implementation.connect(address, client, ssl_context=client_context())
    tcp.until(lambda: client.connection)
    client.connection.write(b"hello" * 10_000)
    tcp.until(lambda: len(client.data) == 50_000)
    client.connection.close()
    assert served.get() == b"hello" * 10_000
    tcp.until(lambda: client.connection._lifecycle.is_gone())


def test_a_web_client_of_the_standard_library_gets_its_pages(tcp):
    class Web(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if self.data.endswith(b"\r\n\r\n"):
                connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                connection.writelines(b"x" * 1000 for _ in range(1000))
                self.chunks.clear()

    def get():
        client = http.client.HTTPSConnection("localhost", listener.address[1], context=client_context(), timeout=20)
        sizes = []
        for _ in range(3):
            client.request("GET", "/")
            sizes.append(len(client.getresponse().read()))
        client.close()
        return sizes

    listener = tcp.listen(Web, ssl_context=server_context())
    assert in_thread(get) == [1_000_000] * 3


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


class Program:
    """The openssl command, controlled by its standard input."""

    def __init__(self, *arguments):
        self._process = subprocess.Popen(
            ["openssl", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.output = b""
        self._reader = gevent.spawn(self._read)

    def _read(self):
        stdout = self._process.stdout
        while True:
            wait_read(stdout.fileno())
            piece = stdout.read1(65536)
            if not piece:
                return
            self.output += piece

    def say(self, data):
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def until(self, data):
        """Wait until the command has printed *data*."""
        with gevent.Timeout(PATIENCE, AssertionError(f"{data!r} is not in {self.output!r}")):
            while data not in self.output:
                gevent.sleep(0.001)

    def close(self):
        self._process.kill()
        self._reader.kill()
        with self._process:
            pass


def test_a_context_that_fails_later_affects_only_its_clients(tcp, capfd):
    class Ruined(ssl.SSLContext):
        ruined = False

        def wrap_bio(self, *arguments, **options):
            if self.ruined:
                raise RuntimeError("ruined")
            return super().wrap_bio(*arguments, **options)

    context = new_server_context(Ruined)
    listener = tcp.listen(Echo, ssl_context=context)
    Ruined.ruined = True
    with socket.create_connection(listener.address) as peer:
        wait_read(peer.fileno(), timeout=PATIENCE)
        assert peer.recv(1) == b""
    assert "RuntimeError: ruined" in capfd.readouterr().err
    Ruined.ruined = False
    client = Witness(tcp)
    tcp.implementation.connect(listener.address, client, ssl_context=client_context(), server_hostname="localhost")
    tcp.until(lambda: client.connection)
    client.connection.write(b"hello")
    tcp.until(lambda: client.data == b"HELLO")


@needs_openssl
def test_openssls_client_gets_its_answer_and_the_end(tcp):
    listener = tcp.listen(Echo, ssl_context=server_context())
    program = Program("s_client", "-quiet", "-no_ign_eof", "-connect", f"127.0.0.1:{listener.address[1]}")
    tcp.peers.append(program)
    program.say(b"hello\n")
    program.until(b"HELLO\n")
    program._process.stdin.close()
    tcp.until(lambda: tcp.served and tcp.served[0].closed)
    assert tcp.served[0].trace == [b"hello\n", ("close", "end of input")]


@needs_openssl
def test_openssls_client_can_update_keys(tcp):
    listener = tcp.listen(Echo, ssl_context=server_context())
    program = Program("s_client", "-tls1_3", "-connect", f"127.0.0.1:{listener.address[1]}")
    tcp.peers.append(program)
    program.until(b"Verification")
    for number in b"1234":
        program.output = b""
        program.say(b"K\n")  # makes openssl change the keys of both sides
        program.until(b"KEYUPDATE")
        program.say(b"hello %c\n" % number)
        program.until(b"HELLO %c\n" % number)
    assert tcp.served[0].connection


def openssl_server(tcp, tmp_path, *options, client=Witness):
    """Start the openssl command as a server for one connection, and connect a client.  Return both."""
    chain = tmp_path / "chain.pem"
    leaf = certificate("localhost", "127.0.0.1", "::1")
    chain.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    program = Program("s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-cert", str(chain), *options)
    tcp.peers.append(program)
    program.until(b"ACCEPT 127.0.0.1:")
    until(lambda: program.output.partition(b"ACCEPT 127.0.0.1:")[2].count(b"\n"))
    port = int(program.output.partition(b"ACCEPT 127.0.0.1:")[2].split()[0])
    client = client(tcp)
    tcp.implementation.connect(("127.0.0.1", port), client, ssl_context=client_context())
    tcp.until(lambda: client.connection or client.failed)
    assert client.connection
    return program, client


@needs_openssl
def test_a_client_works_with_openssls_server(tcp, tmp_path):
    program, client = openssl_server(tcp, tmp_path)
    client.connection.write(b"from the client\n")
    program.until(b"from the client\n")
    program.say(b"from the server\n")
    tcp.until(lambda: client.data == b"from the server\n")
    program.say(b"Q\n")  # the server exits without a close_notify
    tcp.until(lambda: client.closed)
    assert isinstance(client.closed, ssl.SSLEOFError)


@needs_openssl
def test_openssls_server_receives_the_end(tcp, tmp_path):
    program, client = openssl_server(tcp, tmp_path)
    client.connection.write(b"the last\n")
    client.connection.close()
    program.until(b"CONNECTION CLOSED")
    assert b"the last\n" in program.output


@needs_openssl
def test_openssls_server_renegotiates_while_the_client_writes(tcp, tmp_path):
    """In TLS 1.2, a server can request a renegotiation at any time, and the client cannot write until it ends."""

    class Writer(Witness):
        def connected(self, connection):
            def receive(size):
                try:
                    return transport.recv(size)
                finally:
                    if connection:
                        connection._output.pause_threshold = 0  # as after more answers than the server reads
                        connection.write(b"written early\n")
                        connection.writelines([b"-" * 70_000, b"\n"])

            def send(data, flags):
                if not stalls:
                    program._process.send_signal(signal.SIGSTOP)
                    connection._output.pieces.append(b"as if the kernel had been full before\n")
                    connection._output._wait_for_peer()
                try:
                    return transport.send(data, flags)
                finally:
                    stalls.append(transport._stalled)

            transport = connection._transport
            connection._transport = connection._output._transport = Watched(transport, receive, send)
            super().connected(connection)

    stalls = []
    program, client = openssl_server(tcp, tmp_path, "-tls1_2", client=Writer)
    program.say(b"r\n")
    until(lambda: stalls)
    for _ in range(10):
        gevent.sleep(0.001)
    assert len(stalls) < 5  # the client waits for the server, and does not try repeatedly
    assert stalls[-1]
    program._process.send_signal(signal.SIGCONT)
    until(lambda: not stalls[-1])
    program.say(b"hello\n")
    tcp.until(lambda: client.data == b"hello\n")
    client.connection.write(b"x" * 2_000_000)
    program.say(b"r\n")
    client.connection.write(b"the end\n")
    program.until(b"the end\n")
    until(lambda: not client.connection._transport.waits_for_input())
    client.connection.close()
    program.until(b"CONNECTION CLOSED")
    assert b"written early\n" in program.output


# All functions that connect and listen.


def test_blocking_functions_work_over_tls(tcp):
    listener = tcp.listen(Echo, ssl_context=server_context())
    connect = functools.partial(tcp.implementation.connect, ssl_context=client_context(), server_hostname="localhost")

    @ngi_gevent.generator.handler
    def ask(connection):
        connection.write(b"hello")
        answers.append((yield))

    answers = []
    assert blocking.request(connect, listener.address, ask, PATIENCE) is None
    assert answers == [b"HELLO"]
    assert message.message(connect, listener.address, b"hello", lambda data: len(data) == 5, PATIENCE) == b"HELLO"
    output, input = blocking.open(listener.address, connect, PATIENCE)
    output.write(b"a line\n")
    assert input.readline(timeout=PATIENCE) == b"A LINE\n"
    output.close()
    input.close()


@pytest.mark.parametrize("kind", [ngi_gevent.Threaded, ngi_gevent.Inline, ngi_gevent.Implementation])
def test_every_implementation_supports_tls(kind, no_socket_left):
    with kind() as implementation:
        server = blocking.server(lambda input, output: output.writelines(line.upper() for line in input))
        listener = implementation.listener(None, server, ssl_context=server_context(), handshake_timeout=5)
        connect = functools.partial(implementation.connect, ssl_context=client_context(), timeout=PATIENCE)
        output, input = blocking.open(listener.address, connect, PATIENCE)
        output.write(b"hello\n")
        assert input.readline(timeout=PATIENCE) == b"HELLO\n"
        output.close()
        input.close()
        listener.close()
        with pytest.raises(TypeError):
            listener.connect(Witness(None), ssl_context="none")
        implementation.wait(PATIENCE)


def test_other_threads_can_write_over_tls(tls):
    def write():
        for number in range(100):
            served.connection.write(b"%02d " % number)

    client, served = tls.talk()
    in_thread(write)
    tls.until(lambda: len(client.data) == 300)
    assert client.data.split() == [b"%02d" % number for number in range(100)]


# Random data.


def client_hello(context=None):
    """Return the first message of a client."""
    outgoing = ssl.MemoryBIO()
    hello = (context or client_context()).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    return outgoing.read()


def strange_words(seed):
    """Return random bytes, or a damaged first message."""
    chance = random.Random(seed)
    hello = bytearray(client_hello())
    kind = seed % 4
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 2000))
    if kind == 1:
        return bytes(hello[: chance.randrange(len(hello))])
    if kind == 2:
        for _ in range(chance.randrange(1, 20)):
            hello[chance.randrange(len(hello))] = chance.randrange(256)
        return bytes(hello)
    start = chance.randrange(len(hello))
    del hello[start : start + chance.randrange(1, 50)]
    return bytes(hello) + chance.randbytes(chance.randrange(100))


@pytest.mark.parametrize("count", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_random_bytes_during_the_handshake_do_not_affect_others(tls, info, capfd, monkeypatch, count):
    monkeypatch.setattr(crowd, "MOST_FAILED", count + 1)
    listener = tls.listen(Echo)
    client = tls.client(listener)

    def say(seed):
        sock = gevent.socket.create_connection(listener.address[:2])
        try:
            sock.sendall(strange_words(seed))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        except OSError:
            pass
        sock.close()

    for start in range(0, count, 50):
        gevent.joinall(
            [gevent.spawn(say, seed) for seed in range(start, start + 50)], timeout=PATIENCE, raise_error=True
        )
        client.connection.write(b"hello")
        tls.until(lambda start=start: len(client.data) == start // 10 + 5)
    until(lambda: len(listener._connections) == 1)
    assert len(tls.served) == 1
    assert len(info.records) == count
    assert {record.levelname for record in info.records} == {"INFO"}
    assert all("TLS handshake failed" in record.getMessage() for record in info.records)
    assert all(record.getMessage().isascii() for record in info.records)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_random_bytes_after_the_handshake_do_not_affect_others(tls, caplog, capfd, count):
    """Data is changed, cut short, or not encrypted.  Its connection ends, and none of the data is delivered."""
    listener = tls.listen()
    for seed in range(count):
        chance = random.Random(seed)
        peer = tls.peer(listener)
        tls.until(lambda seed=seed: len(tls.served) == seed + 1)
        secure = peer.socket
        secure._ssl.write(chance.randbytes(chance.randrange(1, 1000)))
        words = bytearray(secure._outgoing.read())
        if seed % 3 == 0:
            words[chance.randrange(len(words))] ^= 1 << chance.randrange(8)
        elif seed % 3 == 1:
            words = words[: chance.randrange(len(words))]
        else:
            words = chance.randbytes(len(words))
        secure._sock.sendall(bytes(words))
        secure._sock.shutdown(socket.SHUT_WR)
        tls.until(lambda: tls.served[-1].closed)
        assert tls.served[-1].data == b""
        assert isinstance(tls.served[-1].closed, ssl.SSLError)
        peer.close()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def received_by_a_hasty_client(address):
    """Return the size of the answer for a client that sends much with the end of its handshake, and some more later."""
    received = 0
    with socket.create_connection(address, timeout=PATIENCE) as sock:
        client, incoming, outgoing = almost_shaken_hands(sock)
        for _ in range(3):
            client.write(b"r" * 10_000)
        sock.sendall(outgoing.read())
        time.sleep(0.04)  # the client is slow to read
        while True:
            try:
                data = client.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65536))
                continue
            if not data:
                return received
            received += len(data)
            if received % 7 == 0:
                client.write(b"more")
                sock.sendall(outgoing.read())


def test_an_answer_before_all_input_of_the_handshake_is_read_loses_nothing(tcp):
    def server(connection):
        connection.write(b"x" * 2_000_000)
        connection.close()

    listener = tcp.implementation.listener(("127.0.0.1", 0), server, ssl_context=server_context())
    for _ in range(3):
        assert in_thread(received_by_a_hasty_client, listener.address) == 2_000_000
    listener.close()


def test_large_pieces_are_not_copied_repeatedly_for_a_slow_peer(tls):
    client, served = tls.talk()
    sizes = []
    transport = served.connection._transport
    served.connection._output._transport = Watched(
        transport, transport.recv, lambda data, flags: sizes.append(len(data)) or transport.send(data, flags)
    )
    for _ in range(20):
        served.connection.write(b"x" * 1_000_000)
    tls.until(lambda: client.size == 20_000_000)
    assert max(sizes) == 1_000_000
