"""The full error messages and log entries for the most frequent mistakes of beginners."""

from __future__ import annotations

import ast
import logging
import re
import socket
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path

import gevent
import pytest
from certificates import client_context, server_context
from stages import PATIENCE, Witness, in_thread

import ngi_gevent
import pytest_ngi_gevent
from ngi_gevent import blocking, testing
from ngi_gevent.sockets import listener as listeners

ROOT = Path(__file__).parent.parent

USE_GENERATOR_HANDLER = "; to receive input with yield, use ngi_gevent.generator.handler"


def text_of(function, *arguments, **options):
    """Return the class and the text of the exception that the call raises."""
    with pytest.raises((Exception,)) as caught:
        function(*arguments, **options)
    return f"{caught.type.__name__}: {caught.value}"


def forget(connection):
    """Set no handler, unlike a proper server."""


class Signals(logging.Handler):
    """A log handler that makes a stage check its condition again after each log entry."""

    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def handle(self, record):
        self.stage.happened()
        return True


@pytest.fixture
def log(caplog, request):
    """A function that returns the log entries from a level on: level, logger and message."""
    signals = [Signals(request.getfixturevalue(name)) for name in ("tcp", "simulated") if name in request.fixturenames]

    def log(level=logging.INFO):
        return [
            f"{record.levelname} {record.name}: {record.getMessage()}"
            for record in caplog.records
            if record.levelno >= level and "istening on" not in record.getMessage()
        ]

    caplog.set_level(logging.DEBUG, logger="ngi_gevent")
    for handler in signals:
        logging.getLogger("ngi_gevent").addHandler(handler)
    yield log
    for handler in signals:
        logging.getLogger("ngi_gevent").removeHandler(handler)


# Wrong handlers.


class Generates:
    def handle_input(self, connection, data):
        yield

    def __repr__(self):
        return "<Generates>"


class Waits(Generates):
    async def handle_input(self, connection, data):
        """Do nothing."""


class Handles:
    def handle_input(self, connection, data):
        """Do nothing."""


def test_a_generator_function_as_handle_input_is_refused():
    assert text_of(testing.Connection().set_handler, Generates()) == (
        "TypeError: handle_input must be a plain function; got a generator function of <Generates>"
        + USE_GENERATOR_HANDLER
    )


def test_an_async_function_as_handle_input_is_refused():
    assert text_of(testing.Connection().set_handler, Waits()) == (
        "TypeError: handle_input must be a plain function; got an async function of <Generates>; "
        "write def instead of async def"
    )


def test_a_generator_function_as_a_server_is_refused(log, caplog):
    def serve(connection):
        yield

    ngi = testing.Implementation()
    ngi.listener(None, serve).connect(testing.Recorder())
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert re.sub(" object .* at [^>]*", "", str(record.exc_info[1])) == (
        "the server must be a plain function, or its body does not run; got <generator>" + USE_GENERATOR_HANDLER
    )


def test_a_class_instead_of_an_object_is_refused():
    assert text_of(testing.Connection().set_handler, Handles) == (
        "TypeError: a connection handler must be an object with a handle_input method; "
        f"got {Handles!r}; pass Handles(), not the class Handles"
    )
    assert text_of(testing.Implementation().connect, "anywhere", testing.Recorder) == (
        "TypeError: a client connect handler must be an object with methods connected and failed_connect; "
        f"got {testing.Recorder!r}; pass Recorder(), not the class Recorder"
    )


def test_an_object_instead_of_a_server_is_refused():
    assert text_of(ngi_gevent.listener, None, Generates()) == (
        "TypeError: a server must be a callable that takes a connection; got <Generates>"
    )


# Waits that cannot end.


def output_of(program):
    """Return the output of *program*, from another process because other tests can have started threads."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout


def test_a_wait_for_a_server_without_a_handler_says_so():
    program = """
        import ngi_gevent
        from ngi_gevent import blocking, testing

        ngi = testing.Implementation()
        ngi.listener("server", lambda connection: None)
        output, input = blocking.open("server", ngi.connect)
        output.write(b"a line")
        try:
            input.readline()
        except ngi_gevent.Deadlock as error:
            print(error)
    """
    assert output_of(program) == (
        "this wait can never end: perhaps the peer has no handler (set_handler); "
        "no greenlet, timer or thread is left to send input or to close\n"
    )


@pytest.mark.parametrize("timeout", [None, 10])
def test_a_recorder_that_waits_for_a_server_without_a_handler_says_so(timeout):
    program = f"""
        import ngi_gevent
        from ngi_gevent import testing

        client = testing.Recorder()
        testing.Implementation().listener("server", lambda connection: None).connect(client)
        client.connection.write(b"x")
        try:
            client.expect(b"X", {timeout})
        except AssertionError as error:
            print(error)
    """
    assert output_of(program) == (
        "expected b'X' next, but the server set no handler (set_handler), so it reads nothing: "
        "nothing is left that can make it happen; got b'', the connection is open: "
        "<Connection ('in memory', 1) to 'server', open, handler: Recorder, bytes pending: 1>\n"
    )


def test_a_recorder_on_sockets_that_waits_for_a_server_without_a_handler_says_so(simulated):
    client = testing.Recorder()
    listener = simulated.implementation.listener(None, forget)
    simulated.implementation.connect(listener.address, client)
    client.wait_connected().write(b"x")
    assert text_of(client.expect, b"X", 1.5) == (
        "AssertionError: expected b'X' next, but perhaps the server set no handler (set_handler): "
        f"it did not happen in 1.5 seconds; got b'', the connection is open: {client.connection!r}"
    )
    client.connection.abort()
    listener.close()


@pytest.mark.parametrize("where", ["wait", "close_wait", "read"])
def test_a_wait_in_a_callback_says_what_to_do_instead(tcp, where):
    class Waiting(Witness):
        def handle_input(self, connection, data):
            waits = {
                "wait": tcp.implementation.wait,
                "close_wait": connection.control.close_wait,
                "read": lambda: blocking.open(connection)[1].read(),
            }
            said.append(text_of(waits[where]))
            connection.close()

    said = []
    client = tcp.client(tcp.listen(Waiting))
    client.connection.write(b"x")
    tcp.until(lambda: said)
    expected = {
        "wait": "wait cannot end in a callback of a connection it waits for; use listener.close(callback)",
        "close_wait": "close_wait cannot end in a callback of a connection it waits for; use close(callback)",
        "read": "a callback cannot wait for its own connection, where nothing happens until the callback returns; "
        "wait in another greenlet",
    }
    assert said == [f"Deadlock: {expected[where]}"]


# TLS.


def test_a_context_for_the_wrong_side_is_refused():
    client, server = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    assert text_of(ngi_gevent.listener, None, Handles, ssl_context=client) == (
        "ValueError: ssl_context must be for a server; got one for clients; "
        "make it with ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
    )
    assert text_of(ngi_gevent.connect, ("localhost", 1), testing.Recorder(), ssl_context=server) == (
        "ValueError: ssl_context must be for a client; got one for servers; "
        "make it with ssl.create_default_context(ssl.Purpose.SERVER_AUTH)"
    )


def test_a_missing_server_hostname_is_refused(tmp_path):
    address, handler = str(tmp_path / "socket"), testing.Recorder()
    assert text_of(ngi_gevent.connect, address, handler, ssl_context=client_context()) == (
        "ValueError: server_hostname is missing, and ssl_context checks it (check_hostname); "
        "pass the name in the certificate"
    )


def test_a_client_without_tls_is_reported(simulated, log):
    peer = simulated.peer(simulated.listen(ssl_context=server_context(), handshake_timeout=5))
    peer.read()
    simulated.until(lambda: peer.ended)
    (line,) = log()
    assert re.sub(r"with \(.*?\)", "with PEER", line) == (
        "INFO ngi_gevent.connection: connection with PEER: the TLS handshake failed: "
        "the client did not finish it within 5 seconds; does it use TLS?"
    )


def test_a_server_without_tls_is_reported(simulated):
    client = Witness(simulated)
    address = simulated.listen().address
    options = {"ssl_context": client_context(), "server_hostname": "localhost", "timeout": 5}
    simulated.implementation.connect(address, client, **options)
    simulated.until(lambda: client.failed)
    assert str(client.failed) == f"no TLS handshake with {address!r} within 5 seconds; does the server use TLS?"


# The log of a listener.


def test_a_listener_whose_socket_is_closed_elsewhere_logs_it(tcp, log):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    other = sock.dup()
    listener = tcp.implementation.listener(sock, Handles)
    other.shutdown(socket.SHUT_RDWR)
    other.close()
    tcp.until(log)
    assert log() == [
        f"ERROR ngi_gevent.listener: listener on {listener.address!r} stopped, because its socket was closed "
        "elsewhere: Invalid argument; call listener again"
    ]
    listener.close()


def test_a_listener_that_pauses_logs_why(simulated, log):
    listener = simulated.listen(max_connections=1)
    peers = [simulated.peer(listener) for _ in range(2)]
    simulated.until(lambda: log(logging.WARNING))
    for peer in peers:
        peer.close()
    simulated.until(lambda: len(log(logging.WARNING)) == 2)
    subject = f"WARNING ngi_gevent.listener: listener on {listener.address!r}"
    assert log() == [
        f"{subject} paused, and new clients wait: max_connections=1 reached",
        f"{subject} accepts connections again",
    ]


def test_a_connection_without_a_handler_is_logged(simulated, log):
    listener = simulated.implementation.listener(None, forget)
    simulated.peer(listener)
    simulated.until(lambda: log(logging.WARNING))
    (connection,) = listener.connections()
    assert log() == [
        f"WARNING ngi_gevent.connection: connection with {connection.peer_address!r} has no handler, so "
        "nothing is read: forget must call connection.set_handler"
    ]
    listener.close()


def test_a_handler_that_is_late_or_not_needed_is_not_logged_as_missing(simulated, log, monkeypatch):
    class Late:
        def __init__(self, connection):
            self.connection = connection
            served.append(self)

    served = []
    listener = simulated.implementation.listener(None, Late)
    peers = [simulated.peer(listener) for _ in range(2)]
    simulated.until(lambda: len(served) == 2)
    served[0].connection.set_handler(Handles())
    peers[1].close()
    served[1].connection.close()
    gevent.sleep(listeners.HANDLER_TIMEOUT + 1)
    assert log(logging.WARNING) == []
    listener.close()


# The loggers of the parts that fail.


def raise_error(*_):
    raise ValueError("no")


def test_exceptions_are_logged_by_the_logger_of_the_failing_part(tcp, log):
    class Failing:
        connected = failed_connect = raise_error

    datagrams = tcp.listen_udp(raise_error)
    tcp.implementation.udp(datagrams.address, b"x")
    tcp.until(lambda: len(log(logging.ERROR)) == 1)
    sender = log(logging.ERROR)[0].partition("from ")[2].partition(":")[0]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = unused.getsockname()
        tcp.implementation.connect(address, Failing())
        tcp.until(lambda: len(log(logging.ERROR)) == 2)
    listener = tcp.listen()
    listener.close(raise_error)
    tcp.until(lambda: len(log(logging.ERROR)) == 3)
    assert log(logging.ERROR) == [
        f"ERROR ngi_gevent.datagram: datagram from {sender}: the handler raised an exception",
        f"ERROR ngi_gevent.attempt: connection attempt to {address!r}: failed_connect raised an exception",
        f"ERROR ngi_gevent.listener: listener on {listener.address!r}: the handler given to close raised an exception",
    ]
    assert text_of(datagrams.send, datagrams.address, "text") == (
        "TypeError: data must be bytes, a bytearray or a memoryview; got 'text'; encode text first"
    )
    datagrams.close()
    assert text_of(datagrams.send, datagrams.address, b"x") == (
        f"ListenerClosed: the UDP listener on {datagrams.address!r} is closed"
    )


def test_a_handler_that_uses_a_closed_implementation_is_logged_at_level_debug(tcp, log):
    """The program closed the implementation, and the handler could not prevent that."""

    class Again(Witness):
        def failed_connect(self, reason):
            super().failed_connect(reason)
            tcp.implementation.connect(("127.0.0.1", 1), self)

    again = Again(tcp)
    again.connect_delay = 60
    tcp.implementation.connect(("127.0.0.1", 1), again)
    tcp.implementation.close()
    tcp.until(lambda: again.failed)
    tcp.until(lambda: len(log(logging.DEBUG)) == 2)
    assert log(logging.DEBUG) == [
        "DEBUG ngi_gevent.attempt: connection attempt to ('127.0.0.1', 1): failed_connect raised an exception",
        "DEBUG ngi_gevent.attempt: connection attempt to ('127.0.0.1', 1) failed: stopped",
    ]


def test_a_peer_that_receives_nothing_is_the_reason(simulated, log):
    simulated.peer(simulated.listen())
    simulated.until(lambda: simulated.served)
    connection = simulated.served[0].connection
    connection.write(b"x" * 50_000_000)
    connection.close()
    simulated.until(lambda: log())
    (line,) = log()
    assert re.sub(r"\d+ bytes", "N bytes", line) == (
        f"INFO ngi_gevent.connection: connection with {connection.peer_address!r} reset: "
        "the peer took nothing for 30.0 seconds; N bytes were not delivered"
    )


# Timeouts of files, and closed implementations.


def test_timeouts_of_files_say_which_limit_was_reached(simulated):
    listener = simulated.listen()
    output, input = blocking.open(listener.address, simulated.implementation.connect)
    simulated.until(lambda: simulated.served)
    simulated.served[0].connection.write(b"abc")
    assert text_of(input.read, 10, 5) == "Timeout: the input to read did not arrive within 5 seconds; 3 bytes did"
    output.close()


def test_a_timeout_of_output_says_so(simulated):
    peer = simulated.peer(simulated.listen())
    simulated.until(lambda: simulated.served)
    output, _ = blocking.open(simulated.served[0].connection)
    output.write(b"x" * 50_000_000)
    said = text_of(output.flush, 5)
    left = output.connection.output_pending
    assert said == f"Timeout: the peer did not take all output within 5 seconds; {left} bytes left"
    output.connection.abort()
    peer.close()


def test_a_closed_threaded_says_so():
    threaded = ngi_gevent.Threaded()
    listener = threaded.listener(None, Handles)
    threaded.close()
    threaded.join(PATIENCE)
    for call in (
        lambda: threaded.listener(None, Handles),
        lambda: threaded.connect(listener.address, testing.Recorder()),
        lambda: threaded.udp(listener.address, b"x"),
        lambda: in_thread(threaded.listener, None, Handles),
    ):
        assert text_of(call) == "ImplementationClosed: this Threaded was closed; create another"


# Every message.

#: Calls whose text is a message: exceptions, and methods of loggers.
IS_MESSAGE = re.compile(r"[A-Z]\w*(Error|Closed|Exceeded|Timeout|Response)|Deadlock|Refused|NotSimulated|HostCrashed")
METHODS = {"debug", "info", "warning", "error", "log"}
PACKAGE = Path(ngi_gevent.__file__).parent  # perhaps of an installed wheel
SOURCES = [*PACKAGE.rglob("*.py"), *(ROOT / "examples").glob("*.py"), Path(pytest_ngi_gevent.__file__)]
#: Names and texts from other programs that begin with a capital.
CAPITALS = (
    "I/O ",
    "UDP ",
    "PROXY ",
    "LISTEN_FDS",
    "WATCHDOG_USEC",
    "AF_UNIX",
    "Name or service",
    "Parent changed",
    "Worker ",
)


def messages():
    """Return the messages in the source, with … for each value."""
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text())):
            match call:
                case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)) if IS_MESSAGE.fullmatch(name) or (
                    name in METHODS and "log" in ast.unparse(call.func)
                ):
                    for text in call.args:
                        match text:
                            case ast.Constant(str(value)) if " " in value:
                                yield re.sub("%[.0-9]*[a-z]", "…", value)
                            case ast.JoinedStr(parts):
                                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)


def test_every_message_follows_the_style():
    """A message begins in lower case, has no final full stop, and has at most 150 characters."""
    found = set(messages())
    assert len(found) > 200
    assert [text for text in found if text[:1].isupper() and not text.startswith(CAPITALS)] == []
    assert [text for text in found if text.endswith((".", ","))] == []
    assert [
        text for text in found if len(text) > 150 and " bytes pending" not in text
    ] == []  # the summary of a listener
