"""TLS on a connection that is open already: the last plaintext, the first encrypted data, and failures."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl

import gevent
import gevent.event
import pytest
import trustme
from certificates import client_context, server_context
from stages import PATIENCE, Witness, in_thread

import ngi_gevent
from ngi_gevent import ConnectionClosed, Timeout, adapters, blocking, testing
from ngi_gevent.core.threads import Flag
from ngi_gevent.testing.contract.rules.common import MUCH
from ngi_gevent.testing.simulation import Simulation


class LineServer:
    """A server that answers lines, and starts TLS on STARTTLS."""

    lines: list[bytes]

    def __init__(self, connection, context=None):
        self.lines = []
        self.reason = None
        self.context = context or server_context()
        self.ended = gevent.event.Event()
        connection.data = self
        adapters.Lines(connection).set_handler(self)

    def handle_input(self, connection, line):
        self.lines.append(line)
        if line == b"STARTTLS":
            connection.write(b"go ahead\n")
            connection.start_tls(self.context, server_side=True)
            connection.write(b"welcome\n")
        else:
            connection.write(line + b"\n")

    def handle_close(self, connection, reason):
        self.reason = reason
        self.ended.set()


def secured(sock):
    """Return TLS on *sock*, after the server's answer in plaintext."""
    assert sock.recv(100) == b"go ahead\n"
    return client_context().wrap_socket(sock, server_hostname="localhost")


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


def test_plaintext_after_the_command_is_never_delivered(tcp, caplog):
    caplog.set_level(logging.INFO, logger="ngi_gevent.connection")
    served = []
    listener = tcp.listen(lambda connection: served.append(LineServer(connection)))
    with gevent.socket.create_connection(listener.address[:2]) as sock:
        sock.sendall(b"STARTTLS\nDELETE everything\nDELETE more")
        with gevent.Timeout(PATIENCE):
            while sock.recv(100):  # up to the end of the connection, which follows the alert
                pass
        assert served[0].ended.wait(PATIENCE)
    assert served[0].lines == [b"STARTTLS"]
    assert isinstance(served[0].reason, ssl.SSLError)
    (record,) = caplog.records
    assert "TLS handshake failed" in record.getMessage()


def test_plaintext_during_output_is_reported_with_its_own_error(tcp, caplog):
    """Another greenlet calls ``start_tls``, which waits for the callback, and the callback continues to write."""

    class Server(LineServer):
        def handle_input(self, connection, line):
            self.lines.append(line)
            starting = gevent.spawn(connection.start_tls, self.context, server_side=True)
            while connection.ssl_object is None:
                gevent.sleep(0)
            connection.write(b"x" * MUCH)  # enough output for a send during the callback
            self.starting = starting

    caplog.set_level(logging.INFO, logger="ngi_gevent.connection")
    served = []
    listener = tcp.listen(lambda connection: served.append(Server(connection)))
    with socket.create_connection(listener.address) as sock:
        sock.sendall(b"STARTTLS\nDELETE everything\n")
        while not served:
            gevent.sleep(0)
        assert served[0].ended.wait(PATIENCE)
    with pytest.raises(ConnectionClosed):
        served[0].starting.get()
    assert served[0].lines == [b"STARTTLS"]
    assert isinstance(served[0].reason, ssl.SSLError)
    assert served[0].reason.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")
    (said,) = caplog.messages
    assert "the TLS handshake failed" in said
    assert served[0].reason.reason in said


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
    with pytest.raises(RuntimeError, match="already has TLS"):
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


def test_a_handler_that_reads_a_proxy_line_itself_starts_tls_after_it(tcp):
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


def test_files_return_no_plaintext_after_start_tls(tcp):
    client, served = tcp.talk()
    output, input = blocking.open(client.connection)
    served.connection.write(b"go ahead\n250 injected\n")
    assert input.readline(timeout=PATIENCE) == b"go ahead\n"
    with pytest.raises(ConnectionClosed, match="WRONG_VERSION_NUMBER"):
        client.connection.start_tls(client_context(), server_hostname="localhost")
    with pytest.raises(ssl.SSLError):
        input.read(1, PATIENCE)
    output.close()


SCRIPT = b"first\nSTARTTLS\nDELETE everything\n"


@pytest.mark.parametrize("begun", [True, False], ids=["with the command", "after the answer"])
def test_no_cut_of_the_input_delivers_plaintext(tcp, begun):
    """The rest arrives either with the first part or during the handshake."""
    served = []
    listener = tcp.listen(lambda connection: served.append(LineServer(connection)))
    command = SCRIPT.index(b"DELETE")
    for cut in range(command, len(SCRIPT)):
        with gevent.Timeout(PATIENCE), gevent.socket.create_connection(listener.address[:2]) as sock:
            sock.sendall(SCRIPT[:cut])
            while begun and b"go ahead" not in sock.recv(100):
                pass
            sock.sendall(SCRIPT[cut:])
            while sock.recv(100):
                pass
            assert served[-1].ended.wait(PATIENCE)
        assert served[-1].lines == [b"first", b"STARTTLS"]
        assert isinstance(served[-1].reason, ssl.SSLError)


def exactly(connection):
    adapter = adapters.Delimited(connection, b"\n")
    adapter.exactly(8)
    return adapter


#: Adapters that keep input. Each has a record that begins TLS, and the data after it in the same piece.
KEEPING = {
    "Delimited": (lambda connection: adapters.Delimited(connection, b";"), b"STARTTLS;", b"DELETE;DEL"),
    "exactly": (exactly, b"STARTTLS", b"DELETE\nDEL"),
    "Sized": (adapters.Sized, b"\0\0\0\x08STARTTLS", b"\0\0\0\x06DELETE\0\0\0"),
    "Text": (lambda connection: adapters.Text(adapters.Lines(connection)), b"STARTTLS\n", b"DELETE\nDEL\xc3"),
    "Base": (lambda connection: adapters.Base(adapters.Lines(connection)), b"STARTTLS\n", b"DELETE\nDEL"),
    "twice": (
        lambda connection: adapters.Sized(adapters.Sized(connection)),
        b"\0\0\0\x0c\0\0\0\x08STARTTLS",
        b"\0\0\0\0\0\0\0\0",
    ),
}


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("from_greenlet", [False, True], ids=["callback", "greenlet"])
def test_no_adapter_keeps_plaintext(tcp, name, from_greenlet):
    adapt, command, behind = KEEPING[name]

    class Server(Witness):
        def connected(self, connection):
            super().connected(connection)
            adapt(connection).set_handler(self)

        def handle_input(self, connection, data):
            self.trace.append(data)
            if from_greenlet:
                gevent.spawn(start_tls, connection)
                gevent.sleep(0)
            else:
                start_tls(connection)

    def start_tls(connection):
        with contextlib.suppress(ConnectionClosed):
            connection.start_tls(server_context(), server_side=True)

    listener = tcp.listen(Server)
    with gevent.Timeout(PATIENCE), gevent.socket.create_connection(listener.address[:2]) as sock:
        sock.sendall(command + behind)
        while sock.recv(100):
            pass
    tcp.until(lambda: tcp.served[0].closed)
    assert [data if isinstance(data, str) else data.decode() for data in tcp.served[0].trace[:-1]] == ["STARTTLS"]
    assert isinstance(tcp.served[0].closed, ssl.SSLError)


class RawServer:
    """The server of a client of *stage*.  It does its handshake when the test calls for it, and keeps all input."""

    def __init__(self, stage, witness=Witness):
        with gevent.socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            self.client = witness(stage)
            stage.implementation.connect(listening.getsockname(), self.client)
            self.socket = listening.accept()[0]
        self.socket.settimeout(PATIENCE)
        stage.until(lambda: self.client.connection)
        stage.connections.append(self.client.connection)
        self.received = b""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = server_context().wrap_bio(self._incoming, self._outgoing, server_side=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def receive(self):
        data = self.socket.recv(65536)
        self.received += data
        self._incoming.write(data) if data else self._incoming.write_eof()

    def do(self, operation, *arguments):
        while True:
            try:
                return operation(*arguments)
            except ssl.SSLWantReadError:
                self.flush()
                self.receive()
            finally:
                self.flush()

    def flush(self):
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())

    def read(self, size):
        data = b""
        while len(data) < size and (piece := self.do(self.tls.read, size)):
            data += piece
        return data

    def start_client(self):
        """Start TLS on the client, on a separate greenlet."""
        starting = gevent.spawn(
            raised_by, self.client.connection.start_tls, client_context(), server_hostname="localhost"
        )
        gevent.sleep(0)
        return starting


def raised_by(function, *arguments, **options):
    """Return the exception that *function* raises, or None."""
    try:
        function(*arguments, **options)
    except BaseException as error:
        return error
    return None


def test_output_of_other_greenlets_during_the_handshake_is_encrypted(tcp):
    """The same is true while a callback delays the handshake."""
    entered, leave = Flag(), Flag()

    class Busy(Witness):
        def handle_input(self, connection, data):
            entered.set()
            leave.wait(PATIENCE)
            connection.write(b"of the callback, ")

    with RawServer(tcp, Busy) as server:
        connection = server.client.connection
        server.socket.sendall(b"go ahead\n")
        assert entered.wait(PATIENCE)
        connection.write(b"plaintext ")
        starting = server.start_client()
        connection.write(b"of another greenlet, ")
        connection.writelines([b"of an ", b"iterable, "])
        in_thread(connection.write, b"of a thread, ")
        leave.set()
        while not server.received.startswith(b"plaintext "):
            server.received += server.socket.recv(1)
        server.received = b""
        expected = b"of another greenlet, of an iterable, of a thread, of the callback, and after"
        server.do(server.tls.do_handshake)
        assert starting.get(timeout=PATIENCE) is None
        connection.write(b"and after")
        assert server.read(len(expected)) == expected
        assert b"greenlet" not in server.received
        connection.close()


def test_a_lot_of_plaintext_leaves_first(tcp):
    with RawServer(tcp) as server:
        server.client.connection.write(b"x" * MUCH)
        starting = server.start_client()
        server.client.connection.write(b"secret")
        left = MUCH
        while left:
            left -= len(piece := server.socket.recv(min(left, 65536)))
            assert piece.count(b"x") == len(piece) > 0
        server.do(server.tls.do_handshake)
        assert starting.get(timeout=PATIENCE) is None
        assert server.read(6) == b"secret"


def test_output_after_an_iterable_is_not_encrypted_by_mistake(tcp):
    """The iterable is exhausted, and its output waits for the peer."""
    with RawServer(tcp) as server:
        connection = server.client.connection
        connection.writelines([b"y"])
        connection.write(b"x" * MUCH)
        connection.write(b"z")
        with gevent.Timeout(PATIENCE):
            while connection.output_pending >= MUCH:
                gevent.sleep(0)
        with pytest.raises(RuntimeError, match="drain"):
            connection.start_tls(client_context(), server_hostname="localhost")
        left = MUCH + 2
        while left:
            left -= len(server.socket.recv(min(left, 65536)))
        connection.drain(PATIENCE, below=1)
        starting = server.start_client()
        server.do(server.tls.do_handshake)
        assert starting.get(timeout=PATIENCE) is None


def test_a_second_start_tls_during_the_first_is_an_error(tcp):
    with RawServer(tcp) as server:
        starting = server.start_client()
        assert isinstance(
            raised_by(server.client.connection.start_tls, server_context(), server_side=True), RuntimeError
        )
        server.do(server.tls.do_handshake)
        assert starting.get(timeout=PATIENCE) is None


@pytest.mark.parametrize("end", ["write_eof", "close"])
def test_output_ends_after_the_handshake(tcp, end):
    with RawServer(tcp) as server:
        starting = server.start_client()
        server.client.connection.write(b"all")
        getattr(server.client.connection, end)()
        assert isinstance(raised_by(server.client.connection.write, b"more"), ConnectionClosed)
        server.do(server.tls.do_handshake)
        assert (server.read(3), server.read(1)) == (b"all", b"")
        if end == "write_eof":
            assert starting.get(timeout=PATIENCE) is None
            server.do(server.tls.write, b"an answer")
            tcp.until(lambda: server.client.data == b"an answer")
        else:
            assert isinstance(starting.get(timeout=PATIENCE), ConnectionClosed)


def test_output_ends_after_the_handshake_even_if_there_is_none(tcp):
    with RawServer(tcp) as server:
        starting = server.start_client()
        server.client.connection.write_eof()
        server.do(server.tls.do_handshake)
        assert starting.get(timeout=PATIENCE) is None
        assert server.read(1) == b""


@pytest.mark.parametrize("how", ["own", "of the application"])
def test_a_handshake_that_takes_too_long_is_a_timeout(tcp, caplog, how):
    caplog.set_level(logging.INFO, logger="ngi_gevent.connection")
    raised = []

    class Client(Witness):
        def handle_input(self, connection, data):
            options = {"timeout": 0.01} if how == "own" else {}
            with gevent.Timeout(None if options else 0.01, False):
                raised.append(raised_by(connection.start_tls, client_context(), server_hostname="localhost", **options))

    with RawServer(tcp, Client) as server:
        server.socket.sendall(b"go ahead\n")
        tcp.until(lambda: server.client.closed)
        assert isinstance(raised[0], ConnectionClosed if how == "own" else gevent.Timeout)
        assert isinstance(server.client.closed, Timeout if how == "own" else gevent.Timeout)
        assert ["TLS handshake failed" in record.getMessage() for record in caplog.records] == [True]


def test_an_untrusted_server_receives_nothing(tcp):
    with RawServer(tcp) as server:
        starting = gevent.spawn(
            raised_by, server.client.connection.start_tls, ssl.create_default_context(), server_hostname="localhost"
        )
        gevent.sleep(0)
        server.client.connection.write(b"secret")
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            server.read(1)
        error = starting.get(timeout=PATIENCE)
        assert isinstance(error, ConnectionClosed)
        assert isinstance(error.reason, ssl.SSLCertVerificationError)
        tcp.until(lambda: isinstance(server.client.closed, ssl.SSLCertVerificationError))


def test_a_function_with_files_starts_tls(tcp):
    """The server calls ``start_tls`` in the function's greenlet.  The client also uses files."""

    @blocking.server
    def serve(input, output):
        assert input.readline() == b"STARTTLS\n"
        output.write(b"go ahead\n")
        output.connection.start_tls(server_context(), server_side=True)
        output.write(b"over TLS: " + input.readline())

    listener = tcp.listen(serve)
    output, input = blocking.open(listener.address, tcp.implementation.connect)
    output.write(b"STARTTLS\n")
    assert input.readline(timeout=PATIENCE) == b"go ahead\n"
    input.connection.start_tls(client_context(), server_hostname="localhost")
    output.write(b"hello\n")
    assert input.read(timeout=PATIENCE) == b"over TLS: hello\n"
    assert input.connection.ssl_object.version()
    output.close()


def test_a_waiting_reader_gets_no_plaintext_after_start_tls(tcp):
    with RawServer(tcp) as server:
        output, input = blocking.open(server.client.connection)
        server.socket.sendall(b"go ahead\n250 injected\n")
        assert input.readline(timeout=PATIENCE) == b"go ahead\n"
        starting = server.start_client()
        with pytest.raises(ssl.SSLError):
            input.readline(timeout=PATIENCE)
        assert isinstance(starting.get(timeout=PATIENCE), ConnectionClosed)
        output.close()


def test_a_thread_without_a_hub_starts_tls(tmp_path):
    with ngi_gevent.Threaded() as server, ngi_gevent.Threaded() as client:
        listener = server.listener(("127.0.0.1", 0), LineServer)

        def talk():
            output, input = blocking.open(listener.address, client.connect, timeout=PATIENCE)
            output.write(b"STARTTLS\n")
            said = input.readline(timeout=PATIENCE)
            output.connection.start_tls(client_context(), server_hostname="localhost")
            output.write(b"a secret\n")
            said += input.readline(timeout=PATIENCE) + input.readline(timeout=PATIENCE)
            again = raised_by(output.connection.start_tls, client_context(), server_hostname="localhost")
            output.close()
            return said, again, output.connection.ssl_object.version()

        said, again, version = in_thread(talk)
        assert said == b"go ahead\nwelcome\na secret\n"
        assert isinstance(again, RuntimeError)
        assert version
        connection = blocking.connect(listener.address, client.connect, timeout=PATIENCE)
        listener.close()
    error = raised_by(connection.start_tls, client_context(), server_hostname="localhost")
    assert isinstance(error, ConnectionClosed)


def test_equal_seeds_have_equal_traces():
    authority = trustme.CA(key_type=trustme.KeyType.RSA)  # signatures of other keys differ in length
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost", key_type=trustme.KeyType.RSA).configure_cert(server)
    authority.configure_trust(client)

    def digest(seed):
        with Simulation(seed) as simulation:
            simulation.host("server").listener(("server", 25), lambda connection: LineServer(connection, server))
            simulation.host("client").connect(("server", 25), recorder := testing.Recorder())
            connection = recorder.wait_connected()
            connection.write(b"STARTTLS\n")
            recorder.expect(b"go ahead\n")
            connection.start_tls(client, server_hostname="localhost")
            recorder.expect(b"welcome\n")
            connection.close()
        return simulation.digest

    assert [digest(seed) for seed in range(3)] == [digest(seed) for seed in range(3)]


@pytest.mark.slow
def test_start_tls_works_under_a_hundred_seeds():
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
