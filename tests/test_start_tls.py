"""TLS on a connection that is open already: what goes in plaintext, what does not, and what fails."""

from __future__ import annotations

import logging
import smtplib
import socket
import ssl

import gevent
import gevent.event
import pytest
from certificates import client_context, server_context
from stages import PATIENCE, Witness

from ngi_gevent import ConnectionClosed, adapters, blocking, testing
from ngi_gevent.testing.simulation import Simulation


class LineServer:
    """Answers lines, and starts TLS on STARTTLS."""

    lines: list[bytes]

    def __init__(self, connection):
        self.lines = []
        self.reason = self.error = None
        self.ended = gevent.event.Event()
        connection.data = self
        adapters.Lines(connection).set_handler(self)

    def handle_input(self, connection, line):
        self.lines.append(line)
        if line == b"STARTTLS":
            connection.write(b"go ahead\n")
            connection.start_tls(server_context(), server_side=True)
            connection.write(b"welcome\n")
        else:
            connection.write(line + b"\n")

    def handle_close(self, connection, reason):
        self.reason = reason
        self.ended.set()


def secured(sock):
    """TLS on *sock*, once the server has said so in plaintext."""
    assert sock.recv(100) == b"go ahead\n"
    return client_context().wrap_socket(sock, server_hostname="localhost")


def in_thread(function, *arguments):
    return gevent.get_hub().threadpool.apply(function, arguments)


def converse(address):
    with socket.create_connection(address[:2], timeout=PATIENCE) as sock:
        sock.sendall(b"STARTTLS\n")
        with secured(sock) as tls:
            said = tls.recv(100)
            tls.sendall(b"a secret\n")
            return said + tls.recv(100)


def test_a_line_server_starts_tls(tcp):
    served = []
    listener = tcp.listen(lambda connection: served.append(LineServer(connection)), idle_timeout=PATIENCE)
    assert in_thread(converse, listener.address) == b"welcome\na secret\n"
    assert served[0].ended.wait(PATIENCE)
    assert served[0].lines == [b"STARTTLS", b"a secret"]


def test_plaintext_behind_the_command_is_never_delivered(tcp, caplog):
    caplog.set_level(logging.INFO, logger="ngi_gevent.connection")
    served = []
    listener = tcp.listen(lambda connection: served.append(LineServer(connection)))
    with gevent.socket.create_connection(listener.address[:2]) as sock:
        sock.sendall(b"STARTTLS\nDELETE everything\nDELETE more")
        with gevent.Timeout(PATIENCE):
            while sock.recv(100):  # up to the end of the connection, behind the alert
                pass
        assert served[0].ended.wait(PATIENCE)
    assert served[0].lines == [b"STARTTLS"]
    assert isinstance(served[0].reason, ssl.SSLError)
    (record,) = caplog.records
    assert "TLS handshake failed" in record.getMessage()


def test_a_client_starts_tls_from_another_greenlet(tcp):
    listener = tcp.listen(LineServer)
    client = tcp.client(listener)
    connection = client.connection
    connection.write(b"STARTTLS\n")
    tcp.until(lambda: client.data == b"go ahead\n")
    connection.start_tls(client_context(), server_hostname="localhost")
    assert connection.ssl_object.version()
    connection.write(b"x\n")
    tcp.until(lambda: client.data == b"go ahead\nwelcome\nx\n")
    with pytest.raises(RuntimeError, match="has TLS already"):
        connection.start_tls(client_context(), server_hostname="localhost")


def test_tls_in_the_same_piece_as_the_command_loses_nothing(tcp):
    listener = tcp.listen(LineServer)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with gevent.Timeout(PATIENCE), gevent.socket.create_connection(listener.address[:2]) as sock:
        sock.sendall(b"STARTTLS\n" + outgoing.read())
        plain, _, rest = sock.recv(100000).partition(b"\n")
        incoming.write(rest)
        while True:
            try:
                said = tls.read()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(100000))
    assert (plain, said) == (b"go ahead", b"welcome\n")


def test_a_handler_that_reads_a_proxy_line_itself_starts_tls_behind_it(tcp):
    """The line and the first message of TLS are one piece."""

    class Proxied:
        def __init__(self, connection):
            self.lines = []
            connection.data = self
            adapters.Lines(connection).set_handler(self)

        def handle_input(self, connection, line):
            self.lines.append(line)
            if len(self.lines) == 1:
                connection.start_tls(server_context(), server_side=True)
            connection.write(line + b"\n")

    listener = tcp.listen(Proxied)
    client = Witness(tcp)
    options = {"ssl_context": client_context(), "server_hostname": "localhost"}
    line = b"PROXY TCP4 192.0.2.1 192.0.2.9 4711 443\r\n"
    tcp.implementation.connect(listener.address, client, proxy_header=line, **options)
    tcp.until(lambda: client.connection)
    client.connection.write(b"a secret\n")
    tcp.until(lambda: client.data == line[:-2] + b"\r\na secret\n")
    (connection,) = listener.connections()
    assert connection.data.lines == [line[:-1], b"a secret"]


def test_files_do_not_return_plaintext_once_tls_was_asked_for(tcp):
    client, served = tcp.talk()
    output, input = blocking.open(client.connection)
    served.connection.write(b"go ahead\n250 injected\n")
    assert input.readline(timeout=PATIENCE) == b"go ahead\n"
    with pytest.raises(ConnectionClosed, match="WRONG_VERSION_NUMBER"):
        client.connection.start_tls(client_context(), server_hostname="localhost")
    with pytest.raises(ssl.SSLError):
        input.read(1, PATIENCE)
    output.close()


def test_what_cannot_be_is_an_error_at_the_call(stage):
    client, _ = stage.talk()
    start_tls = client.connection.start_tls
    for error, arguments in [
        (TypeError, {"ssl_context": None}),
        (ValueError, {"ssl_context": client_context()}),
        (ValueError, {"ssl_context": client_context(), "server_side": True}),
        (ValueError, {"ssl_context": server_context(), "server_side": True, "server_hostname": "localhost"}),
        (ValueError, {"ssl_context": server_context(), "server_side": True, "timeout": -1}),
    ]:
        with pytest.raises(error):
            start_tls(**arguments)
    client.connection.close()
    with pytest.raises(ConnectionClosed):
        start_tls(client_context(), server_hostname="localhost")


def test_a_parser_that_may_have_plaintext_is_no_way_to_tls(tcp):
    client, _ = tcp.talk()
    adapters.SansIO(client.connection, lambda data: None, lambda: [b"event"]).set_handler(client)
    with pytest.raises(ConnectionClosed):
        client.connection.start_tls(client_context(), server_hostname="localhost")
    tcp.until(lambda: client.gone)
    assert isinstance(client.trace[-1][1], RuntimeError)


class MailServer:
    """As much of SMTP as a client needs to start TLS."""

    def __init__(self, connection):
        adapters.Lines(connection, crlf=True).set_handler(self)
        connection.write(b"220 localhost ESMTP\r\n")

    def handle_input(self, connection, line):
        command = line.split(b" ")[0].upper()
        if command == b"EHLO":
            offer = b"" if connection.ssl_object else b"250-STARTTLS\r\n"
            connection.write(b"250-localhost\r\n" + offer + b"250 HELP\r\n")
        elif command == b"STARTTLS":
            connection.write(b"220 ready\r\n")
            connection.start_tls(server_context(), server_side=True)
        elif command == b"QUIT":
            connection.write(b"221 bye\r\n")
            connection.close()
        else:
            connection.write(b"250 over TLS\r\n" if connection.ssl_object else b"250 in plaintext\r\n")


def test_smtplib(tcp):
    def send_mail(port):
        with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
            before = client.noop()
            client._host = "localhost"  # for the certificate
            client.starttls(context=client_context())
            client.ehlo()
            return before, client.noop()

    listener = tcp.listen(MailServer)
    assert in_thread(send_mail, listener.address[1]) == ((250, b"in plaintext"), (250, b"over TLS"))


@pytest.mark.slow
def test_it_works_under_a_hundred_seeds():
    for seed in range(100):
        with Simulation(seed) as simulation:
            simulation.host("server").listener(("server", 25), LineServer)
            client = simulation.host("client")
            client.connect(("server", 25), recorder := testing.Recorder())
            connection = recorder.wait_connected()
            connection.write(b"first\nSTARTTLS\n")
            recorder.expect(b"first\ngo ahead\n")
            connection.start_tls(client_context(), server_hostname="localhost")
            connection.write(b"x" * 200_000 + b"\n")
            recorder.expect(b"welcome\n" + b"x" * 200_000 + b"\n")
            connection.close()
